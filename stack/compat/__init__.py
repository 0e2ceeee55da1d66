"""The layer all passes share: stamps on cached state, the principal subspace."""
