"""M members from questions to adapters."""
