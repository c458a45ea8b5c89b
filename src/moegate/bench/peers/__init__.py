"""What moegate is measured against; every peer is optional, and its absence is reported with the reason."""
