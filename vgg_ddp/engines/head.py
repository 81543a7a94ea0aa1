"""The head of a network that is whole on every rank: the interface of a head that may be split over them (`split_head`)."""

from __future__ import annotations

from torch import Tensor, nn


class WholeHead:
    """Every rank has the whole network: nothing is to be gathered or split.

    Attributes:
        shards: this rank's shard of each split parameter by name, as a plain parameter for the optimizer; its memory is the
            network's.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.shards: dict[str, nn.Parameter] = {}

    def collect_gradients(self) -> None:
        """Give the shards the mean gradient of the global batch, and clear the network's own."""

    def whole(self, name: str, shard: Tensor) -> Tensor:
        """The whole tensor of which each rank holds `shard`, split like the parameter `name`. All ranks together."""
        return shard

    def shard(self, name: str, whole: Tensor) -> Tensor:
        """This rank's shard of a whole tensor, split like the parameter `name`."""
        return whole

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict with whole tensors. All ranks together."""
        return self.network.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load whole tensors, saved at any world size."""
        self.network.load_state_dict(weights)

    def whole_network(self) -> nn.Module:
        """A network with every parameter whole, for evaluation. All ranks together."""
        return self.network
