"""Communication between ranks: verbs, transports, GPU staging and compression."""
