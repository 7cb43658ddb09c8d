"""What the board shows of the spool."""

from __future__ import annotations

from sharedvol import SharedVolError, Volume
from sharedvol_sidecar.board import Board
from sharedvol_sidecar.collector import Collector
from sharedvol_sidecar.picture import ReplicaView


def show_backlog(board: Board, collector: Collector) -> None:
    """What the last pass left in the spool, by container; and the logs that are followed."""
    board.backlog({name: (files, size) for name, (files, size) in collector.admission.backlog.items()})
    board.followed(len(collector.followed.logs))


def show_replicas(board: Board, volume: Volume) -> None:
    """The replicas that joined the volume."""
    try:
        found = volume.replicas()
    except SharedVolError:
        return  # the pass tells what is wrong with the volume
    board.replicas(
        ReplicaView(each.name, each.alive, each.slot, each.joined_at.timestamp() if each.joined_at else None)
        for each in found
    )
