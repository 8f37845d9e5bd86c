"""What a reader of results sees: tables and pictures, made from records alone."""
