"""What passes share: rules, noise, the principal subspace, schedules on other noise levels."""
