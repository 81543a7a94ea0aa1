"""The head of a network on the ranks: whole on each, or spread over them (`split_head`)."""

from __future__ import annotations

from torch import Tensor, nn

from vgg_ddp.config.communication import CommunicationConfig
from vgg_ddp.distributed.world import World


class WholeHead:
    """Every rank has the whole network: there is nothing to put together or to cut.

    Attributes:
        parts: this rank's part of each cut parameter by name, as a plain parameter for the optimizer; its memory is the
            network's.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.parts: dict[str, nn.Parameter] = {}

    def collect_gradients(self) -> None:
        """Give the parts the mean gradient of the global batch, and clear the network's own."""

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The whole tensor of which each rank holds `part`, cut like the parameter `name`. All ranks together."""
        return part

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a whole tensor, cut like the parameter `name`."""
        return whole

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict with whole tensors. All ranks together."""
        return self.network.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take in whole tensors, saved at any world size."""
        self.network.load_state_dict(weights)

    def whole_network(self) -> nn.Module:
        """A network with every parameter whole, for evaluation. All ranks together."""
        return self.network


def build(network: nn.Module, config: CommunicationConfig, world: World) -> WholeHead:
    """Cut the head of `network`, in place, where `communication.split_head` says so.

    Raises:
        UserError: the hosts have unequal numbers of ranks.
    """
    if config.split_head == "none" or world.size == 1:
        return WholeHead(network)
    from vgg_ddp.engines.split_head import SplitHead  # which takes its time to import

    return SplitHead(network, config, world)
