"""One file a stage: what it depends on, what it does. A stage reads only the store and writes only its own folder."""
