"""The page that says what an ensemble knows, and where it should not be trusted."""
