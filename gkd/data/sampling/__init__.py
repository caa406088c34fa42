"""In which order an epoch visits the images of a data set; see `Order`. The table maps a YAML name to its class."""

from gkd.data.sampling.balanced import Balanced
from gkd.data.sampling.order import Order, Sampling
from gkd.data.sampling.shards import Shards
from gkd.data.sampling.uniform import Uniform

SAMPLINGS: dict[str, type[Sampling]] = {"uniform": Uniform, "balanced": Balanced, "shards": Shards}

__all__ = ["SAMPLINGS", "Balanced", "Order", "Sampling", "Shards", "Uniform"]
