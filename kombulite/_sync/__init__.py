"""The synchronous facade: what `Connection.channel`, `messaging.Producer` and `messaging.Consumer` are."""
