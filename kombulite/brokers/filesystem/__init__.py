"""The transport over folders: a file for each message, under the names and in the format that kombu gives them.

Transport options: ``data_folder_in`` (``data_in``: where messages are read), ``data_folder_out`` (``data_out``: where
they are written; the same folder for a program that talks to itself), ``control_folder`` (``control``: exchanges,
queues, bindings), ``store_processed`` (False) to keep what was acknowledged in ``processed_folder``
(``processed``), ``fsync`` (True) to have each message on the disk when ``publish`` returns.
"""

from kombulite.brokers import virtual
from kombulite.brokers.filesystem.folders import FolderStore

__all__ = ["Transport"]


class Transport(virtual.Transport):
    """A connection to a set of folders."""

    driver_type = "filesystem"
    driver_name = "filesystem"
    Store = FolderStore

    def driver_version(self) -> str:
        """There is no library behind it."""
        return "N/A"
