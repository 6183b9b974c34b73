"""What both facades share: addresses, states, topology, retries, dispatch. Internal: no name here is public."""
