"""Face patches re-made from the Olivetti faces: 400 grey images of 64×64, ten of each of 40 people.

The faces are those of AT&T Laboratories Cambridge (Samaria & Harter 1994, doi 10.1109/ACV.1994.341300).
Hinton & Salakhutdinov 2006 (doi 10.1126/science.1127647, supporting text) made 165,600 patches of 25×25 by rotating, scaling,
cropping and subsampling these faces; they and the Hessian-free and K-FAC papers (Martens 2010; Martens & Grosse 2015) train on
them. Those patches are not published, so errors here compare with each other and not with the papers'. A patch here is a
square grid of points

    p(i, j) = c + s R(θ) (i − 12, j − 12)        i, j = 0 … 24

read by bilinear interpolation: spacing s uniform in [1.4, 1.8] pixels, angle θ in ±90°, and its centre c uniform over all
places at which the whole grid lies inside the face. As in the paper, the first 30 people are for training, every point of the
grid is shifted to mean zero, and one number scales all to an average variance of one; both come from the training patches.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from heatbath.experiments.data.base import Dataset, Fetch, Remote, Source, Tensors, locate
from heatbath.experiments.data.digits import load_upscaled

FILE = "olivettifaces.mat"
SERVED = "b612fb967f2dc77c9c62d3e1266e0c73d5fca46a4b8906c18e454d41af987794"  # SHA-256, as scikit-learn 1.9 has it
COPIES = {  # SHA-256 of files known to hold the faces
    SERVED,
    "b1988d02c72fe5b8ee82b5ef3bb7982eafc74f1e1ff0ae0ade35061ad0af534d",  # github.com/sjgershm/DBM, commit a30d9abb
}
REMOTE = Remote(("https://ndownloader.figshare.com/files/5976027",), f"sha256:{SERVED}")
FACE, PATCH = 64, 25  # pixels a side
PEOPLE, IMAGES = 40, 10
TRAIN_PEOPLE = 30
PATCHES = 100  # of each face; the paper has 414
SPACINGS = (1.4, 1.8)  # pixels of the face between neighbouring points of a patch
SEED = 0


def load_faces(fetch: Fetch | None = None) -> Dataset:
    """Patches `[N, 625]`, standardized; enlarged `digits` where the faces cannot be had.

    A local copy that is none of the known files is loaded as `olivetti-patches-unverified`.

    Raises:
        ValueError: a file is there, but it is no Olivetti file.
    """
    try:
        paths, source = locate("olivetti", {FILE: REMOTE}, fetch=fetch)
    except FileNotFoundError as error:
        stand_in = load_upscaled(PATCH, why=str(error).split(". ")[0])
        train, test = (split.tensors[0] for split in (stand_in.train, stand_in.test) if isinstance(split, Tensors))
        return Dataset(stand_in.name, f"{stand_in.source}; standardized", *_standardized(train, test))
    genuine = hashlib.sha256(paths[FILE].read_bytes()).hexdigest() in COPIES
    faces, generator = read_faces(paths[FILE]), torch.Generator().manual_seed(SEED)
    first = TRAIN_PEOPLE * IMAGES
    train, test = (cut_patches(part, PATCHES, generator=generator) for part in (faces[:first], faces[first:]))
    made = f"{PATCHES} patches of 25×25 from each face, turned, scaled and cropped here, seed {SEED}; 30 people train, 10 test"
    if genuine:
        return Dataset("olivetti-patches", f"{source}, content checked; {made}", *_standardized(train, test))
    return Dataset("olivetti-patches-unverified", f"{source}, none of the known files; {made}", *_standardized(train, test))


def read_faces(path: Path) -> Tensor:
    """The faces in [0, 1], `[400, 64, 64]`, ordered by person.

    Raises:
        ValueError: not a MATLAB file, or not this one.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        columns = loadmat(path, appendmat=False)["faces"]
    except (MatReadError, ValueError, KeyError, TypeError, NotImplementedError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged or no Olivetti file ({error}): replace it, or remove it to have it downloaded"
        ) from error
    if columns.shape != (FACE * FACE, PEOPLE * IMAGES):
        raise ValueError(f"{path} is no Olivetti file: faces has shape {columns.shape}, not {(FACE * FACE, PEOPLE * IMAGES)}")
    faces = torch.from_numpy(columns.astype("float32")).T.reshape(-1, FACE, FACE).transpose(1, 2)  # MATLAB goes down first
    return faces / 255 if faces.max() > 1 else faces


def cut_patches(faces: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Random patches of each face.

    Args:
        faces: `[N, 64, 64]`.
        count: patches of each face.
        generator: decides spacings, angles and places, in this order.

    Returns:
        Patches `[N · count, 1, 25, 25]`, those of one face in a row.
    """
    shape = (len(faces), count)
    low, high = SPACINGS
    spacing = low + (high - low) * torch.rand(shape, generator=generator)
    angle = math.pi * (torch.rand(shape, generator=generator) - 0.5)
    sine, cosine = spacing * angle.sin(), spacing * angle.cos()
    reach = (PATCH - 1) / 2 * (sine.abs() + cosine.abs())  # of the turned grid from its centre, along either axis
    room = (FACE - 1) / 2 - reach
    centre = room.unsqueeze(-1) * (2 * torch.rand(*shape, 2, generator=generator) - 1)
    steps = torch.arange(PATCH) - (PATCH - 1) / 2
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    across = centre[..., 0, None, None] + cosine[..., None, None] * columns - sine[..., None, None] * rows
    down = centre[..., 1, None, None] + sine[..., None, None] * columns + cosine[..., None, None] * rows
    grid = torch.stack([across, down], dim=-1) / (FACE / 2)  # grid_sample's [-1, 1] runs from edge to edge of the image
    patches = F.grid_sample(faces.unsqueeze(1), grid.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=False)
    return patches.reshape(-1, 1, PATCH, PATCH)


def _standardized(train: Tensor, test: Tensor) -> tuple[Tensors, Tensors]:
    """Both halves flattened, shifted by the training mean of each pixel and divided by one number."""
    train, test = train.flatten(1), test.flatten(1)
    mean = train.mean(0)
    scale = (train - mean).square().mean().sqrt()
    return Tensors(((train - mean) / scale,)), Tensors(((test - mean) / scale,))


faces = Source(
    "olivetti-patches",
    "25×25 patches of the Olivetti faces from $HEATBATH_DATA/olivetti, else downloaded, else scikit-learn's digits enlarged",
    load_faces,
)
