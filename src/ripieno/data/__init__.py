"""Questions, the files and public sets that hold them, and the prompts that put them to a model."""
