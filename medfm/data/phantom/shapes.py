"""Geometry of the phantom: convex solids, rays through them, and tubes made of points.

World coordinates are the patient's, in mm and LPS: x to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FAR = np.float32(1e6)  # an empty interval is (FAR, FAR): finite, so that lengths stay free of NaN


@dataclass(frozen=True, eq=False)
class Quadric:
    """The points p with |A (p - c)| <= 1: an ellipsoid where A is (3, 3), an endless elliptic cylinder where it is (2, 3)."""

    center: np.ndarray
    matrix: np.ndarray


@dataclass(frozen=True, eq=False)
class Solid:
    """A convex body: the intersection of quadrics and half-spaces `normal . p <= offset`."""

    quadrics: tuple[Quadric, ...]
    planes: tuple[tuple[tuple[float, float, float], float], ...] = ()

    def inside(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) float32 points -> (...) bool."""
        keep = np.ones(points.shape[:-1], bool)
        for quadric in self.quadrics:
            local = (points - quadric.center) @ quadric.matrix.T
            keep &= np.einsum("...i,...i->...", local, local) <= 1.0
        for normal, offset in self.planes:
            keep &= points @ np.asarray(normal, np.float32) <= offset
        return keep

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner (3,) of a box around it, 2 m at most."""
        low, high = np.full(3, -1000.0), np.full(3, 1000.0)
        for quadric in self.quadrics:
            if len(quadric.matrix) == 3:
                reach = np.sqrt(np.diag(np.linalg.inv(quadric.matrix.T @ quadric.matrix)))
            else:  # along z
                reach = np.array([1 / quadric.matrix[0, 0], 1 / quadric.matrix[1, 1], 1000.0])
            low, high = np.maximum(low, quadric.center - reach), np.minimum(high, quadric.center + reach)
        for normal, offset in self.planes:
            if normal[2] > 0 and not (normal[0] or normal[1]):
                high[2] = min(high[2], offset / normal[2])
            elif normal[2] < 0 and not (normal[0] or normal[1]):
                low[2] = max(low[2], offset / normal[2])
        return low, np.maximum(high, low)

    def cut(self, normal: tuple[float, float, float], offset: float) -> Solid:
        return Solid(self.quadrics, (*self.planes, (normal, offset)))

    def __and__(self, other: Solid) -> Solid:
        return Solid(self.quadrics + other.quadrics, self.planes + other.planes)


def ellipsoid(
    center: tuple[float, float, float],
    radii: tuple[float, float, float],
    tilt: float = 0.0,
    pitch: float = 0.0,
    yaw: float = 0.0,
) -> Solid:
    """An ellipsoid turned about y by `tilt` degrees (above 0 its top leans to the patient's left), x by `pitch`, z by `yaw`."""
    axes = rotation(tilt, pitch, yaw)
    matrix = (axes / np.asarray(radii)).T  # rows: axis / radius
    return Solid((Quadric(np.asarray(center, np.float32), matrix.astype(np.float32)),))


def cylinder(center: tuple[float, float], radii: tuple[float, float], bottom: float, top: float) -> Solid:
    """An elliptic cylinder along z between two heights."""
    matrix = np.array([[1 / radii[0], 0, 0], [0, 1 / radii[1], 0]], np.float32)
    solid = Solid((Quadric(np.array([*center, 0.0], np.float32), matrix),))
    return solid.cut((0, 0, 1), top).cut((0, 0, -1), -bottom)


def rotation(tilt: float, pitch: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    """(3, 3) rotation: about y by `tilt`, then x by `pitch`, then z by `yaw`, in degrees."""
    t, p, w = np.deg2rad([tilt, pitch, yaw])
    about_y = np.array([[np.cos(t), 0, np.sin(t)], [0, 1, 0], [-np.sin(t), 0, np.cos(t)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(w), -np.sin(w), 0], [np.sin(w), np.cos(w), 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


Window = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True, eq=False)
class Span:
    """Where the rays of a window are inside something: entry and exit (h, w), (FAR, FAR) where a ray misses."""

    window: Window
    start: np.ndarray
    end: np.ndarray


@dataclass(frozen=True, eq=False)
class Rays:
    """One ray a pixel: `origin + t * direction`, both (3, H, W) float32, direction of length 1, so t is in mm.

    `locate` gives the (columns, rows) where points (N, 3) are seen: solids are only looked for where their boxes are.
    """

    origin: np.ndarray
    direction: np.ndarray
    locate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

    @property
    def shape(self) -> tuple[int, int]:
        return self.origin.shape[1], self.origin.shape[2]

    def window(self, solid: Solid) -> Window:
        low, high = solid.bounds()
        corners = np.array([[(low, high)[i >> axis & 1][axis] for axis in range(3)] for i in range(8)], np.float32)
        sides = []
        for at, n in zip(self.locate(corners)[::-1], self.shape, strict=True):
            sides.append(slice(int(np.clip(at.min() - 1, 0, n)), int(np.clip(at.max() + 2, 0, n))))
        return sides[0], sides[1]

    def span(self, solid: Solid) -> Span:
        """Where each ray is inside a solid. Exact."""
        window = self.window(solid)
        o, d = self.origin[:, window[0], window[1]], self.direction[:, window[0], window[1]]
        start = np.full(o.shape[1:], -FAR, np.float32)
        end = np.full(o.shape[1:], FAR, np.float32)
        for quadric in solid.quadrics:
            a, b, c = np.float32(1e-12), np.float32(0), np.float32(-1)
            for row, shift in zip(quadric.matrix, quadric.matrix @ quadric.center, strict=True):
                q = row[0] * o[0] + row[1] * o[1] + row[2] * o[2] - shift
                v = row[0] * d[0] + row[1] * d[1] + row[2] * d[2]
                a, b, c = a + v * v, b + q * v, c + q * q
            root = b * b - a * c
            missed = root <= 0
            root = np.sqrt(np.maximum(root, 0))
            near = (-b - root) / a
            np.copyto(near, FAR, where=missed)
            np.maximum(start, near, out=start)
            np.minimum(end, (root - b) / a, out=end)
        for normal, offset in solid.planes:
            n = np.asarray(normal, np.float32)
            speed = n[0] * d[0] + n[1] * d[1] + n[2] * d[2]
            gap = np.float32(offset) - (n[0] * o[0] + n[1] * o[1] + n[2] * o[2])
            speed = np.where(np.abs(speed) < 1e-6, np.float32(1e-6), speed)
            crossing = gap / speed
            np.minimum(end, crossing, out=end, where=speed > 0)
            np.maximum(start, crossing, out=start, where=speed < 0)
        empty = start >= end
        np.copyto(start, FAR, where=empty)
        np.copyto(end, FAR, where=empty)
        return Span(window, start, end)

    def chord(self, solid: Solid) -> np.ndarray:
        """(H, W) path length in mm."""
        return Segments([self.span(solid)]).length(self.shape)


class Segments:
    """Disjoint pieces of rays: what remains of solids after others were cut out of them."""

    def __init__(self, pieces: list[Span]) -> None:
        self.pieces = pieces

    def minus(self, cut: Span) -> Segments:
        pieces = []
        for piece in self.pieces:
            both = _overlap(piece.window, cut.window)
            if both is None:
                pieces.append(piece)
                continue
            a, b = _part(piece, both)
            start, end = _part(cut, both)
            before, after = piece.end.copy(), np.maximum(a, end)
            _within(before, piece.window, both)[...] = np.minimum(b, start)
            pieces.append(Span(piece.window, piece.start, before))
            if (b > after).any():
                pieces.append(Span(both, after, b))
        return Segments(pieces)

    def within(self, keep: Span) -> Segments:
        pieces = []
        for piece in self.pieces:
            both = _overlap(piece.window, keep.window)
            if both is not None:
                a, b = _part(piece, both)
                start, end = _part(keep, both)
                pieces.append(Span(both, np.maximum(a, start), np.minimum(b, end)))
        return Segments(pieces)

    def length(self, shape: tuple[int, int]) -> np.ndarray:
        """(H, W) mm."""
        total = np.zeros(shape, np.float32)
        for piece in self.pieces:
            total[piece.window] += np.maximum(piece.end - piece.start, 0)
        return total


def _overlap(a: Window, b: Window) -> Window | None:
    rows = slice(max(a[0].start, b[0].start), min(a[0].stop, b[0].stop))
    cols = slice(max(a[1].start, b[1].start), min(a[1].stop, b[1].stop))
    return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None


def _within(array: np.ndarray, window: Window, part: Window) -> np.ndarray:
    """The view of `array`, which covers `window`, that covers `part`."""
    return array[tuple(slice(p.start - w.start, p.stop - w.start) for w, p in zip(window, part, strict=True))]


def _part(span: Span, part: Window) -> tuple[np.ndarray, np.ndarray]:
    return _within(span.start, span.window, part), _within(span.end, span.window, part)


@dataclass(frozen=True, eq=False)
class Points:
    """A thin structure as points (N, 3) float32 in mm, each standing for a volume (N,) in mm^3."""

    position: np.ndarray
    volume: np.ndarray

    def where(self, keep: np.ndarray) -> Points:
        return Points(self.position[keep], self.volume[keep])


def join(parts: list[Points]) -> Points:
    if not parts:
        return Points(np.zeros((0, 3), np.float32), np.zeros(0, np.float32))
    return Points(np.concatenate([p.position for p in parts]), np.concatenate([p.volume for p in parts]))


def tube(line: np.ndarray, radius: np.ndarray | float, rings: tuple[tuple[float, int], ...] = ((0.0, 1), (0.7, 6))) -> Points:
    """A round tube about polylines.

    Args:
        line: (..., S, 3) samples along the centre line(s).
        radius: mm, broadcast against (..., S).
        rings: (share of the radius, number of points) of each ring of the cross-section; all points share its area equally.
    """
    line = np.asarray(line, np.float32)
    along = np.gradient(line, axis=-2)
    step = np.linalg.norm(along, axis=-1)
    along /= np.maximum(step, 1e-6)[..., None]
    # Two unit vectors across the line; the helper axis is the one the line is least parallel to.
    helper = np.where(np.abs(along[..., 2:]) < 0.8, np.array([0, 0, 1], np.float32), np.array([1, 0, 0], np.float32))
    across = np.cross(along, helper)
    across /= np.maximum(np.linalg.norm(across, axis=-1), 1e-6)[..., None]
    other = np.cross(along, across)
    radius = np.broadcast_to(np.asarray(radius, np.float32), step.shape)
    count = sum(n for _, n in rings)
    places = []
    for share, n in rings:
        for angle in np.linspace(0, 2 * np.pi, n, endpoint=False):
            offset = np.float32(np.cos(angle)) * across + np.float32(np.sin(angle)) * other
            places.append(line + (np.float32(share) * radius)[..., None] * offset)
    volume = (np.float32(np.pi) * radius**2 * step / np.float32(count)).astype(np.float32)
    position = np.stack(places).reshape(-1, 3).astype(np.float32)
    return Points(position, np.broadcast_to(volume, (count, *volume.shape)).reshape(-1))


def bezier(start: np.ndarray, control: np.ndarray, end: np.ndarray, samples: int) -> np.ndarray:
    """(..., 3) control points of quadratic curves -> (..., samples, 3)."""
    t = np.linspace(0, 1, samples, dtype=np.float32)[:, None]
    p0, p1, p2 = (np.asarray(p, np.float32)[..., None, :] for p in (start, control, end))
    return (1 - t) ** 2 * p0 + 2 * t * (1 - t) * p1 + t**2 * p2


def resample(line: np.ndarray, step: float = 1.0, count: int = 0) -> np.ndarray:
    """A polyline (S, 3) with points every `step` mm, or with `count` points."""
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    at = np.linspace(0, lengths[-1], count or max(int(lengths[-1] / step) + 1, 2))
    return np.stack([np.interp(at, lengths, line[:, i]) for i in range(3)], axis=1).astype(np.float32)
