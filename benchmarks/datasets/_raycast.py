"""Rooms with boxes on the floor, drawn at random, and what a camera in them sees: ray casting.

World coordinates are in metres, x and y along the walls and z up; the floor lies at z = 0. The
boxes of a room, the first of which is the room itself, stand upright and are turned by a yaw.
"""

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Generator, Tensor

FIELD_OF_VIEW = math.radians(60)
"""From the left to the right edge of the image, about that of a Kinect."""
BOXES = 7
"""Of a room: itself and at most six on its floor."""
CHUNK = 16
"""Rooms that are cast at once, few enough for the cache."""


class Rooms(NamedTuple):
    """The geometry of N rooms with K boxes each."""

    centres: Tensor
    """Of the boxes, shape ``(N, K, 3)``; a box that is not there lies far below the floor."""
    halves: Tensor
    """Half the lengths of the boxes' sides, shape ``(N, K, 3)``."""
    turns: Tensor
    """Yaws of the boxes, shape ``(N, K)``, in radians."""
    camera: Tensor
    """Its position, shape ``(N, 3)``."""
    yaw: Tensor
    """Where the camera looks, shape ``(N,)``, in radians; 0 along x, pi / 2 along y."""
    pitch: Tensor
    """How far the camera looks down, shape ``(N,)``, in radians."""


class Paint(NamedTuple):
    """The look of N rooms, whose K boxes have six faces each: x, y and z, low and high."""

    colours: Tensor
    """The two colours of each face's pattern, shape ``(N, K * 6, 2, 3)``, from 0 to 1."""
    patterns: Tensor
    """Checker (0), stripes (1) or smooth noise (2), shape ``(N, K * 6)``."""
    frequencies: Tensor
    """Of the pattern, shape ``(N, K * 6)``, per metre."""
    light: Tensor
    """Position of the lamp, shape ``(N, 3)``."""
    ambient: Tensor
    """Share of the light that comes from everywhere, shape ``(N,)``."""


Batch = TypeVar("Batch", Rooms, Paint)


def draw_rooms(n: int, generator: Generator) -> Rooms:
    """Return random rooms, 2.5 to 13 m long and wide, each seen by a person who stands in it."""
    uniform = _Uniform(n, generator)
    length = torch.exp(uniform(math.log(2.5), math.log(13), 2))
    room = torch.cat([length, uniform(2.3, 3.2, 1)], dim=1)
    camera = torch.cat([length * uniform(0.1, 0.9, 2), uniform(1.3, 1.6, 1)], dim=1)
    # People look into a room rather than at the wall beside them.
    inwards = room / 2 - camera
    yaw = torch.atan2(inwards[:, 1], inwards[:, 0]) + uniform(-1.0, 1.0, 1)[:, 0]
    sizes = torch.cat([uniform(0.4, 2.0, BOXES, 2), uniform(0.4, 1.8, BOXES, 1)], dim=2)
    centres = torch.cat([length[:, None] * uniform(0, 1, BOXES, 2), sizes[..., 2:] / 2], dim=2)
    there = torch.arange(BOXES) <= uniform(2, 7, 1).floor()
    # Nobody stands in the furniture.
    away = (centres - camera[:, None])[..., :2].norm(dim=-1) > sizes[..., :2].norm(dim=-1) / 2 + 0.5
    centres[..., 2] -= 100.0 * ~(there & away)
    sizes[:, 0], centres[:, 0] = room, room / 2
    turns = uniform(0, math.pi, BOXES)
    turns[:, 0] = 0
    return Rooms(centres, sizes / 2, turns, camera, yaw, uniform(-0.05, 0.4, 1)[:, 0])


def draw_paint(rooms: Rooms, generator: Generator) -> Paint:
    """Return random patterns and light for the rooms; a box and the walls look alike all around."""
    uniform = _Uniform(len(rooms.camera), generator)
    first = uniform(0.25, 0.95, BOXES, 1, 1, 3)
    second = first * uniform(0.4, 0.85, BOXES, 1, 1, 3)
    colours = torch.cat([first, second], dim=3).repeat(1, 1, 6, 1, 1)
    patterns = uniform(0, 3, BOXES, 1).floor().repeat(1, 1, 6)
    frequencies = uniform(1.0, 3.0, BOXES, 1).repeat(1, 1, 6)
    # The floor (face 4 of box 0) differs from the walls, and the ceiling (face 5) is nearly white.
    colours[:, 0, 4] *= uniform(0.4, 1.0, 1, 3)
    colours[:, 0, 5] = uniform(0.85, 1.0, 2, 1)
    patterns[:, 0, 4:] = uniform(0, 3, 2).floor()
    light = rooms.halves[:, 0] * torch.tensor([2.0, 2.0, 1.9]) * uniform(0.2, 0.8, 3)
    light[:, 2] = 1.9 * rooms.halves[:, 0, 2]
    return Paint(
        colours.flatten(1, 2),
        patterns.flatten(1),
        frequencies.flatten(1),
        light,
        uniform(0.25, 0.6, 1)[:, 0],
    )


def cast_depth(rooms: Rooms, height: int, width: int) -> Tensor:
    """Return the depth along the optical axis, shape ``(N, height, width)``, in metres.

    It is what a depth camera gives: a wall that faces the camera is as deep at the edge of the
    image as in its centre, although the way to it is longer.
    """
    depths = [_cast(part, height, width)[0] for part in _chunks(rooms)]
    return torch.cat(depths).view(-1, height, width)


def render(rooms: Rooms, paint: Paint, height: int, width: int) -> Tensor:
    """Return what the camera sees, shape ``(N, 3, height, width)``, of mean 0.45, without noise."""
    parts = []
    for part, look in zip(_chunks(rooms), _chunks(paint), strict=True):
        depth, rays, box = _cast(part, height, width)
        points = part.camera[:, None] + depth[..., None] * rays
        parts.append(_shade(part, look, points, box))
    images = torch.cat(parts).view(-1, height, width, 3).permute(0, 3, 1, 2)
    # Automatic exposure, as a camera has it.
    return images * (0.45 / images.mean((1, 2, 3), keepdim=True))


class _Uniform:
    """Draw numbers for N rooms, shape ``(N, ...)``."""

    def __init__(self, n: int, generator: Generator) -> None:
        self.n, self.generator = n, generator

    def __call__(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.n, *shape, generator=self.generator)


def _chunks(batch: Batch) -> list[Batch]:
    """Return the rooms or their paint, ``CHUNK`` at a time."""
    return [type(batch)(*parts) for parts in zip(*(t.split(CHUNK) for t in batch), strict=True)]


def _cast(rooms: Rooms, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return depth, ray and box of each pixel, shapes ``(N, P)``, ``(N, P, 3)``, ``(N, P)``."""
    rays = _rays(rooms, height, width)
    start = _turned(rooms.camera[:, None] - rooms.centres, rooms.turns)[:, :, None]
    along = _turned(rays[:, None], rooms.turns[..., None])
    halves = rooms.halves[:, :, None]
    # A ray is inside a box from the last of the three slabs it enters to the first it leaves.
    low, high = (-halves - start) / along, (halves - start) / along
    enters = torch.minimum(low, high).amax(dim=-1)
    leaves = torch.maximum(low, high).amin(dim=-1)
    hits = torch.where((enters < leaves) & (enters > 0), enters, math.inf)
    # The room itself is seen from within.
    hits[:, 0] = leaves[:, 0]
    depth, box = hits.min(dim=1)
    return depth, rays, box


def _rays(rooms: Rooms, height: int, width: int) -> Tensor:
    """Return the ray of each pixel, 1 m long along the optical axis, shape ``(N, P, 3)``."""
    pixel = 2 * math.tan(FIELD_OF_VIEW / 2) / width
    down = (torch.arange(height) + 0.5 - height / 2) * pixel
    right = (torch.arange(width) + 0.5 - width / 2) * pixel
    down, right = torch.meshgrid(down, right, indexing="ij")
    cos, sin, zero = rooms.yaw.cos(), rooms.yaw.sin(), torch.zeros_like(rooms.yaw)
    level, drop = rooms.pitch.cos(), rooms.pitch.sin()
    ahead = torch.stack([level * cos, level * sin, -drop], dim=-1)
    upwards = torch.stack([drop * cos, drop * sin, level], dim=-1)
    rightwards = torch.stack([sin, -cos, zero], dim=-1)
    right, down = right.reshape(-1, 1), down.reshape(-1, 1)
    return ahead[:, None] + right * rightwards[:, None] - down * upwards[:, None]


def _turned(vectors: Tensor, turns: Tensor) -> Tensor:
    """Return vectors, shape ``(..., 3)``, in the axes of boxes turned by ``turns``."""
    x, y, z = vectors.unbind(-1)
    cos, sin = turns.cos(), turns.sin()
    x, y = cos * x + sin * y, cos * y - sin * x
    return torch.stack([x, y, z.expand_as(x)], dim=-1)


def _shade(rooms: Rooms, paint: Paint, points: Tensor, box: Tensor) -> Tensor:
    """Return the light that the boxes send from the points, shape ``(N, P, 3)``."""
    turns, centres = _of_pixels(rooms.turns, box), _of_pixels(rooms.centres, box)
    local = _turned(points - centres, turns)
    lamp = _turned(paint.light[:, None] - points, turns)
    # A point on a box is on the face that it is nearest to.
    ratio = local / _of_pixels(rooms.halves, box)
    axis = ratio.abs().argmax(dim=-1, keepdim=True)
    side = ratio.gather(-1, axis)[..., 0].sign()
    face = box * 6 + 2 * axis[..., 0] + (side > 0)
    # Normals point out of a box and into the room.
    outwards = torch.where(box == 0, -side, side)
    distance = lamp.norm(dim=-1)
    lambert = (outwards * lamp.gather(-1, axis)[..., 0] / distance).clamp(min=0)
    ambient = paint.ambient[:, None]
    light = ambient + (1 - ambient) * lambert / (1 + (distance / 4) ** 2)
    return light[..., None] * _colour(paint, local, axis, face)


def _colour(paint: Paint, local: Tensor, axis: Tensor, face: Tensor) -> Tensor:
    """Return the colour of the faces at points given in the axes of their box."""
    frequency = _of_pixels(paint.frequencies, face)
    across = local.gather(-1, (axis + 1) % 3)[..., 0] * frequency
    along = local.gather(-1, (axis + 2) % 3)[..., 0] * frequency
    # Shifted, so that no edge of a pattern lies in the middle of a face.
    columns, rows = (across + 0.3).floor(), (along + 0.3).floor()
    waves = (across + along / 2).mul(3).sin() + (along * 1.7 - across / 3).mul(3).sin()
    candidates = torch.stack([(columns + rows) % 2, columns % 2, waves / 4 + 0.5])
    pattern = candidates.gather(0, _of_pixels(paint.patterns, face).long()[None])[0]
    colours = _of_pixels(paint.colours, face)
    return torch.lerp(colours[..., 0, :], colours[..., 1, :], pattern[..., None])


def _of_pixels(values: Tensor, index: Tensor) -> Tensor:
    """Return the entries of ``values``, shape ``(N, S, ...)``, at ``index``, shape ``(N, P)``."""
    return values[torch.arange(len(values))[:, None], index]
