"""Where members and questions are shared out: one engine a file."""
