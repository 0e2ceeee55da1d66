"""Random input, seeded: whatever comes, it is taken or refused in one line."""
