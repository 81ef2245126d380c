"""Several processes that run one command: how they start, share work, agree and end."""
