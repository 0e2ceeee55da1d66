"""Where a cache sits: the span of blocks, every block, or every module. A site asks its controller and answers."""
