"""The paper's head spread over ranks: data-parallel convolutions, model-parallel classifier (Krizhevsky 2014, arXiv 1404.5997).

The first layer of 4096 is cut by its outputs, the second by its inputs. Between convolutions and head the ranks of a group
exchange their images' features, and behind the second layer the sums: activations travel in place of the gradients of 90 %
of VGG's parameters. The last layer is small and stays data-parallel. The cutting and sending is torch's tensor parallelism.
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
    """The two layers of 4096, cut in place; see `WholeHead`."""

    def __init__(self, network: nn.Module, config: CommunicationConfig, world: World) -> None:
        super().__init__(network)
        self._ranks = world.size
        self._whole = copy.deepcopy(network).to("meta")
        mesh, self._across = _mesh(config, world)
        classifier = network.get_submodule("classifier")
        for module in classifier.children():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # what tensor parallelism returns is a view
        plan = {FIRST: ColwiseParallel(input_layouts=Shard(0)), SECOND: RowwiseParallel(output_layouts=Shard(0))}
        parallelize_module(classifier, mesh, plan)
        self._cut = {name: p for name, p in network.named_parameters() if isinstance(p, DTensor)}
        self.parts = {name: nn.Parameter(cut.to_local().detach()) for name, cut in self._cut.items()}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, list(self._cut))

    def collect_gradients(self) -> None:
        for name, cut in self._cut.items():
            assert isinstance(cut.grad, DTensor)
            gradient = cut.grad.redistribute(placements=cut.placements).to_local()
            if self._across is not None:
                dist.all_reduce(gradient, group=self._across)
            self.parts[name].grad = gradient.div_(self._ranks)
            cut.grad = None

    def whole(self, name: str, part: Tensor) -> Tensor:
        cut = self._cut.get(name)
        if cut is None or part.shape != self.parts[name].shape:
            return part
        tensor = DTensor.from_local(
            part, cut.device_mesh, cut.placements, run_check=False, shape=cut.shape, stride=cut.stride()
        )
        return tensor.full_tensor()

    def part(self, name: str, whole: Tensor) -> Tensor:
        cut = self._cut.get(name)
        if cut is None or whole.shape != cut.shape:
            return whole
        whole = whole.to(cut.device)
        return distribute_tensor(whole, cut.device_mesh, cut.placements, src_data_rank=None).to_local()

    def weights(self) -> dict[str, Tensor]:
        parts = {name: part.detach() for name, part in self.parts.items()}
        return {name: self.whole(name, parts.get(name, value)) for name, value in self.network.state_dict().items()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        rest = {name: value for name, value in weights.items() if name not in self.parts}
        missing = set(self.network.load_state_dict(rest, strict=False).missing_keys) - set(self.parts)
        assert not missing, missing
        for name, part in self.parts.items():
            part.copy_(self.part(name, weights[name]))

    def whole_network(self) -> nn.Module:
        network = copy.deepcopy(self._whole)
        network.load_state_dict(self.weights(), assign=True)
        return network


def _mesh(config: CommunicationConfig, world: World) -> tuple[DeviceMesh, dist.ProcessGroup | None]:
    """The ranks that share a head, and the group that this rank's part has in common with the other heads, if there are."""
    if config.split_head == "all" or world.local_size == world.size:
        return init_device_mesh(world.device.type, (world.size,)), None
    if world.rank % world.local_size != world.local_rank or world.size % world.local_size:
        raise UserError("communication.split_head=host needs hosts with equally many ranks; use split_head=all")
    mesh = init_device_mesh(
        world.device.type, (world.size // world.local_size, world.local_size), mesh_dim_names=("hosts", "ranks")
    )
    return mesh["ranks"], mesh["hosts"].get_group()
