"""The frozen base, its members' stacked adapters, and the scores of a question's choices."""
