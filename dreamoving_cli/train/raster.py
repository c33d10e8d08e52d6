"""A small z-buffer: triangles in, per-pixel attributes out (numba, on one core)."""

import numpy as np
from numba import njit


@njit(cache=True, fastmath=True)
def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals, float32 `v 3`."""
    normals = np.zeros_like(vertices)
    for t in range(faces.shape[0]):
        a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
        ux, uy, uz = vertices[b] - vertices[a]
        vx, vy, vz = vertices[c] - vertices[a]
        n0, n1, n2 = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for i in (a, b, c):
            normals[i, 0] += n0
            normals[i, 1] += n1
            normals[i, 2] += n2
    for i in range(normals.shape[0]):
        length = np.sqrt(normals[i, 0] ** 2 + normals[i, 1] ** 2 + normals[i, 2] ** 2) + 1e-12
        normals[i] /= length
    return normals


@njit(cache=True, fastmath=True)
def skin(
    rest: np.ndarray, weights: np.ndarray, bones: np.ndarray, rotations: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Linear blend skinning: rest `v 3`; weights, bones `v k`; rotations `j 3 3`; offsets `j 3` -> `v 3`."""
    out = np.zeros_like(rest)
    for i in range(rest.shape[0]):
        for k in range(weights.shape[1]):
            w = weights[i, k]
            if w > 0:
                j = bones[i, k]
                for r in range(3):
                    out[i, r] += w * (
                        rotations[j, r, 0] * rest[i, 0]
                        + rotations[j, r, 1] * rest[i, 1]
                        + rotations[j, r, 2] * rest[i, 2]
                        + offsets[j, r]
                    )
    return out


def rasterize(
    screen: np.ndarray, faces: np.ndarray, attributes: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest surface at every pixel center.

    screen: float32 `v 3`, x and y in pixels, z the distance. attributes: float32 `v c`.
    Returns distance `h w` (inf where empty), triangle index `h w` (-1), attributes `h w c`.
    """
    depth, index, weights = _nearest(screen, faces, height, width)
    return depth, index, _interpolate(index, weights, faces, attributes)


@njit(cache=True, fastmath=True)
def _nearest(
    screen: np.ndarray, faces: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The z-buffer: distance `h w`, triangle `h w`, weights of its second and third corner `h w 2`."""
    depth = np.full((height, width), np.float32(np.inf))
    index = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 2), np.float32)
    for t in range(faces.shape[0]):
        a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
        ax, ay, az = screen[a]
        bx, by, bz = screen[b]
        cx, cy, cz = screen[c]
        if az < 0.05 or bz < 0.05 or cz < 0.05:
            continue
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        x0 = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        x1 = min(int(np.floor(max(ax, bx, cx) - 0.5)), width - 1)
        y0 = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        y1 = min(int(np.floor(max(ay, by, cy) - 0.5)), height - 1)
        inverse = 1.0 / area
        for y in range(y0, y1 + 1):
            py = y + 0.5
            for x in range(x0, x1 + 1):
                px = x + 0.5
                wb = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) * inverse
                wc = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) * inverse
                wa = 1.0 - wb - wc
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                z = wa * az + wb * bz + wc * cz
                if z < depth[y, x]:
                    depth[y, x] = z
                    index[y, x] = t
                    weights[y, x, 0] = wb
                    weights[y, x, 1] = wc
    return depth, index, weights


@njit(cache=True, fastmath=True)
def _interpolate(
    index: np.ndarray, weights: np.ndarray, faces: np.ndarray, attributes: np.ndarray
) -> np.ndarray:
    """Attributes `h w c` of the triangles seen; 0 where there is none."""
    height, width = index.shape
    out = np.zeros((height, width, attributes.shape[1]), np.float32)
    for y in range(height):
        for x in range(width):
            t = index[y, x]
            if t >= 0:
                a, b, c = faces[t, 0], faces[t, 1], faces[t, 2]
                wb, wc = weights[y, x, 0], weights[y, x, 1]
                wa = 1.0 - wb - wc
                for k in range(attributes.shape[1]):
                    out[y, x, k] = wa * attributes[a, k] + wb * attributes[b, k] + wc * attributes[c, k]
    return out
