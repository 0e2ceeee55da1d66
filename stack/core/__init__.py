"""What a stack is made of: passes, facts, findings, the plan, and the installer that changes a model."""
