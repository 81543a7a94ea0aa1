"""The paper's head spread over ranks: data-parallel convolutions, tensor-parallel classifier (Krizhevsky, arXiv 1404.5997).

The first layer of 4096 is split by its outputs, the second by its inputs. Before the head the ranks of a group exchange their
images' features, after the second layer the partial sums: activations are sent in place of the gradients of 90 % of VGG's
parameters. The last layer is small and stays data-parallel. Splitting and sending is torch's tensor parallelism.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from vgg_ddp.config.communication import CommunicationConfig
from vgg_ddp.distributed.world import World
from vgg_ddp.engines.head import WholeHead
from vgg_ddp.errors import UserError

FIRST, SECOND = "0", "3"  # the layers of 4096 in the paper's classifier


class SplitHead(WholeHead):
    """The two layers of 4096 as DTensors, in place; see `WholeHead`.

    Raises:
        UserError: the hosts have unequal numbers of ranks.
    """

    def __init__(self, network: nn.Module, config: CommunicationConfig, world: World) -> None:
        super().__init__(network)
        self._ranks = world.size
        self._whole = copy.deepcopy(network).to("meta")
        mesh, self._other_heads = _mesh(config, world)
        classifier = network.get_submodule("classifier")
        for module in classifier.children():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # what tensor parallelism returns is a view
        plan = {FIRST: ColwiseParallel(input_layouts=Shard(0)), SECOND: RowwiseParallel(output_layouts=Shard(0))}
        parallelize_module(classifier, mesh, plan)
        self._split = {name: p for name, p in network.named_parameters() if isinstance(p, DTensor)}
        self.shards = {name: nn.Parameter(split.to_local().detach()) for name, split in self._split.items()}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, list(self._split))

    def collect_gradients(self) -> None:
        """DDP ignores the split layers: sum their gradients over the other heads, and divide by all ranks."""
        for name, split in self._split.items():
            assert isinstance(split.grad, DTensor)
            gradient = split.grad.redistribute(placements=split.placements).to_local()
            if self._other_heads is not None:
                dist.all_reduce(gradient, group=self._other_heads)
            self.shards[name].grad = gradient.div_(self._ranks)
            split.grad = None

    def whole(self, name: str, shard: Tensor) -> Tensor:
        """Gather over the ranks of this head; what is not split like its parameter stays as it is."""
        split = self._split.get(name)
        if split is None or shard.shape != self.shards[name].shape:
            return shard
        tensor = DTensor.from_local(
            shard, split.device_mesh, split.placements, run_check=False, shape=split.shape, stride=split.stride()
        )
        return tensor.full_tensor()

    def shard(self, name: str, whole: Tensor) -> Tensor:
        """Split without a message: every rank has the whole tensor."""
        split = self._split.get(name)
        if split is None or whole.shape != split.shape:
            return whole
        whole = whole.to(split.device)
        return distribute_tensor(whole, split.device_mesh, split.placements, src_data_rank=None).to_local()

    def weights(self) -> dict[str, Tensor]:
        """Gather the split layers; the rest is the network's memory."""
        shards = {name: shard.detach() for name, shard in self.shards.items()}
        return {name: self.whole(name, shards.get(name, value)) for name, value in self.network.state_dict().items()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Split the layers of 4096; the rest is loaded as ever."""
        rest = {name: value for name, value in weights.items() if name not in self.shards}
        missing = set(self.network.load_state_dict(rest, strict=False).missing_keys) - set(self.shards)
        assert not missing, missing
        for name, shard in self.shards.items():
            shard.copy_(self.shard(name, weights[name]))

    def whole_network(self) -> nn.Module:
        """A new network with gathered layers."""
        network = copy.deepcopy(self._whole)
        network.load_state_dict(self.weights(), assign=True)
        return network


def _mesh(config: CommunicationConfig, world: World) -> tuple[DeviceMesh, dist.ProcessGroup | None]:
    """The ranks that share a head, and the ranks that hold this rank's shard in the other heads, if there are any."""
    if config.split_head == "all" or world.local_size == world.size:
        return init_device_mesh(world.device.type, (world.size,)), None
    if world.rank % world.local_size != world.local_rank or world.size % world.local_size:
        raise UserError("communication.split_head=host needs hosts with equally many ranks; use split_head=all")
    mesh = init_device_mesh(
        world.device.type, (world.size // world.local_size, world.local_size), mesh_dim_names=("hosts", "ranks")
    )
    return mesh["ranks"], mesh["hosts"].get_group()
