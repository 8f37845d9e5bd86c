"""Images -> features -> scores under one protocol."""
