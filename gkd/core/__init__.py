"""What every layer shares: errors, types, distributed helpers, safe files, seeds, logging, class-axis primitives."""
