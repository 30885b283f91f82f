"""Makes models of random configurations with transformers, timm and torchvision, takes them through `tenon import` and `tenon
forward`, and compares: results, loss, and the library's own results from what Tenon wrote.

Needs the packages of tools/fixtures/requirements.txt and a built `tenon`. Each number is a model; a failed one leaves its folder:

    python tools/check_import.py 0 50 [TENON]
"""

import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import timm
import torch
import torchvision
import transformers as hf
from safetensors.torch import load_file, save_file

BOUND = 1e-4
LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "depths"}
FOLDER = pathlib.Path(tempfile.gettempdir()) / "tenon-check-import"
TENON = "tenon"


def tenon(*arguments):
    done = subprocess.run([TENON, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())


def perturbed(model):
    """The model with no weight that is 0 or 1 everywhere or hardly counts, ready to evaluate."""
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.numel()):
            if p.ndim > 1:
                p.normal_(0, p[0].numel() ** -0.5)
            else:
                p.add_(torch.randn_like(p) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.8, 1.2)
    return model.eval()


def forward(folder, inputs):
    save_file({k: v.contiguous() for k, v in inputs.items()}, folder / "in.safetensors")
    tenon("forward", folder / "out", "--inputs", folder / "in.safetensors", "--outputs", folder / "out.safetensors")
    return load_file(folder / "out.safetensors")


def apart(found, wanted, seen=None):
    """The greatest difference relative to the greatest number, where tokens are seen."""
    if seen is not None and found.shape[:2] == seen.shape and found.ndim > 2:
        found, wanted = found[seen], wanted[seen]
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def with_less_said(rng, folder, kind, unsaid, given):
    """Leaves the keys `unsaid`, and often another one, out of config.json, and gives what the library then makes of the folder;
    nothing if it does not open it."""
    file = folder / "in/config.json"
    said = {key: value for key, value in json.loads(file.read_text()).items() if key not in unsaid}
    file.write_text(json.dumps(said))
    if rng.random() < 0.5:
        return None
    # Without its type or class a folder says not what it is of, and without its number of layers too little of the weights.
    left_out = rng.choice(sorted(set(said) - {"model_type", "architectures"} - LAYERS))
    file.write_text(json.dumps({key: value for key, value in said.items() if key != left_out}))
    try:
        model, told = kind.from_pretrained(folder / "in", attn_implementation="eager", output_loading_info=True)
        with torch.no_grad():
            wanted = model.eval()(**given)
        if not any(told.values()):
            return wanted
    except Exception:  # of whatever kind the library has for what it does not open
        pass
    file.write_text(json.dumps(said))
    return None


def of_transformers(rng, folder, kind, config, inputs, seen=None, labels=None, unsaid=()):
    """The greatest differences: of results, and of the library's results from what Tenon wrote. The keys `unsaid` are left
    out of config.json."""
    config._attn_implementation = "eager"
    model = perturbed(kind(config))
    model.save_pretrained(folder / "in")
    given = inputs if labels is None else dict(inputs, labels=labels)
    wanted = with_less_said(rng, folder, kind, unsaid, given)
    if wanted is None:
        with torch.no_grad():
            wanted = model(**given)
    tenon("import", folder / "in", "--out", folder / "out")
    found = forward(folder, given)
    results = [name for name in ("logits", "last_hidden_state", "pooler_output", "loss") if wanted.get(name) is not None]
    results = [name for name in results if not (name == "loss" and labels is None)]
    # A loss may be ten times less apart.
    difference = max(apart(found[name], wanted[name], seen) * (10 if name == "loss" else 1) for name in results)
    again, told = kind.from_pretrained(folder / "out", attn_implementation="eager", output_loading_info=True)
    if any(told.values()):
        raise RuntimeError(f"transformers opens what was written with {told}")
    with torch.no_grad():
        back = again.eval()(**inputs)
    return difference, apart(back[results[0]], wanted[results[0]], seen)


def texts(rng, config, longest, padded):
    """Tokens from 4 on, what is seen of them, and both as inputs."""
    batch, length = rng.randint(1, 3), rng.randint(2, longest)
    ids, mask = torch.randint(4, config.vocab_size, (batch, length)), torch.ones(batch, length, dtype=torch.long)
    side = rng.choice(["none", "left", "right"]) if padded else "none"
    for row in range(batch):
        count = rng.randint(0, length - 1) if side != "none" else 0
        hidden = slice(0, count) if side == "left" else slice(length - count, length)
        mask[row, hidden] = 0
    ids = torch.where(mask == 1, ids, config.pad_token_id or 0)
    inputs = dict(input_ids=ids) if side == "none" else dict(input_ids=ids, attention_mask=mask)
    return inputs, mask.bool()


def rotary(rng, context):
    found = dict(rope_type=rng.choice(["default", "linear", "llama3", "yarn", "dynamic"]), rope_theta=rng.choice([1e4, 5e5]))
    if found["rope_type"] != "default":
        found["factor"] = rng.choice([2.0, 8.0])
    if found["rope_type"] in ("llama3", "yarn"):
        found["original_max_position_embeddings"] = context // 2
    if found["rope_type"] == "llama3":
        found.update(low_freq_factor=1.0, high_freq_factor=4.0)
    if found["rope_type"] == "yarn" and rng.random() < 0.5:
        found.update(beta_fast=16.0, beta_slow=2.0, attention_factor=1.2)
    return found


def some(rng, share, **choices):
    """Each setting with this probability, as one of its choices."""
    return {key: rng.choice(values) for key, values in choices.items() if rng.random() < share}


ACTIVATIONS = ["gelu", "relu", "gelu_new", "silu", "quick_gelu", "gelu_pytorch_tanh", "tanh", "mish", "relu2", "leaky_relu"]


def decoder(rng, folder):
    family = rng.choice(["Llama", "Mistral", "Qwen2", "Qwen3", "Mixtral", "Qwen2Moe", "Qwen3Moe", "GPT2"])
    # The library multiplies the matrices of experts in rows of whole 16 bytes only.
    kv, head, context = rng.choice([1, 2, 3]), rng.choice([4, 8, 12]), rng.choice([16, 32, 64])
    heads, layers, vocab = kv * rng.choice([1, 2, 4]), rng.choice([1, 2, 3]), rng.choice([37, 101])
    if family == "GPT2":
        more = some(
            rng, 0.3, n_inner=[7, 32], activation_function=ACTIVATIONS, layer_norm_epsilon=[1e-6, 1e-3], embd_pdrop=[0.0, 0.3],
            scale_attn_weights=[False], scale_attn_by_inverse_layer_idx=[True], tie_word_embeddings=[False],
        )  # fmt: skip
        sizes = dict(vocab_size=vocab, n_embd=heads * head, n_layer=layers, n_head=heads, n_positions=context)
        config = hf.GPT2Config(**sizes, **more)
    else:
        sizes = dict(
            vocab_size=vocab, hidden_size=heads * head, intermediate_size=rng.choice([20, 52]), num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=context,
            rms_norm_eps=rng.choice([1e-5, 1e-6]), tie_word_embeddings=rng.random() < 0.5,
            rope_parameters=rotary(rng, context), **some(rng, 0.2, hidden_act=ACTIVATIONS),
        )  # fmt: skip
        if family.startswith("Qwen"):
            sizes.update(some(rng, 0.4, use_sliding_window=[True]), sliding_window=5, max_window_layers=rng.choice([0, 1, 2]))
        if family == "Mixtral":
            sizes.update(head_dim=head)
        if family == "Llama":
            sizes.update(attention_bias=rng.random() < 0.3, mlp_bias=rng.random() < 0.3)
        if family in ("Mistral", "Mixtral"):
            sizes.update(sliding_window=rng.choice([None, 5]))
        if family in ("Qwen3", "Qwen3Moe"):
            sizes.update(head_dim=rng.choice([8, 12, 128]))
        if family == "Mixtral":
            sizes.update(num_local_experts=rng.choice([3, 5]), num_experts_per_tok=rng.choice([1, 2]))
        if family.endswith("Moe"):
            sizes.update(
                num_experts=rng.choice([3, 6]), num_experts_per_tok=rng.choice([1, 2]), moe_intermediate_size=rng.choice([8, 20]),
                norm_topk_prob=rng.random() < 0.5, **some(rng, 0.3, decoder_sparse_step=[2], mlp_only_layers=[[0]]),
            )  # fmt: skip
        if family in ("Mixtral", "Qwen2Moe", "Qwen3Moe") and "decoder_sparse_step" not in sizes:
            sizes.update(some(rng, 0.3, output_router_logits=[True]) if "mlp_only_layers" not in sizes else {})
        if family == "Qwen2Moe":
            sizes.update(shared_expert_intermediate_size=rng.choice([12, 30]), qkv_bias=rng.random() < 0.7)
        config = getattr(hf, family + "Config")(**sizes)
    dynamic = (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "dynamic"
    inputs, seen = texts(rng, config, context + 20 if dynamic else context, not dynamic)
    labels = torch.where(seen, inputs["input_ids"], -100)
    # What comes before the first token of a text sees nothing, and guesses nothing.
    labels[torch.arange(len(seen)), seen.int().argmax(1)] = -100
    kind = getattr(hf, family + ("LMHeadModel" if family == "GPT2" else "ForCausalLM"))
    guessed = (labels[:, 1:] != -100).any()
    unsaid = [key for key in ["layer_types"] if rng.random() < 0.5]
    if family == "Qwen3" and config.head_dim == 128:
        unsaid.append("head_dim")
    return kind.__name__, of_transformers(rng, folder, kind, config, inputs, seen, labels if guessed else None, unsaid)


def problem(rng, config, batch):
    """Labels of a kind of problem, which config.json may name."""
    kind = rng.choice([None, "regression", "single_label_classification", "multi_label_classification"])
    config.problem_type, classes = kind, config.num_labels
    if kind in (None, "single_label_classification"):
        return torch.randint(0, classes, (batch,))
    return torch.randn(batch, classes) if kind == "regression" else torch.randint(0, 2, (batch, classes)).float()


def encoder(rng, folder):
    family = rng.choice(["Bert", "Roberta", "DistilBert"])
    kind = getattr(hf, family + rng.choice(["Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"]))
    heads, vocab, context, layers = rng.choice([1, 2, 3]), rng.choice([37, 101]), rng.choice([16, 40]), rng.choice([1, 2])
    width, inner = heads * rng.choice([4, 8]), rng.choice([20, 40])
    sizes = dict(vocab_size=vocab, max_position_embeddings=context, num_labels=rng.choice([2, 5]))
    if family == "DistilBert":
        config = hf.DistilBertConfig(dim=width, hidden_dim=inner, n_layers=layers, n_heads=heads, **sizes)
    else:
        sizes.update(hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads)
        # A head of RoBERTa for words has the activation gelu, whatever the layers have.
        sizes.update(hidden_act=rng.choice(ACTIVATIONS), layer_norm_eps=rng.choice([1e-5, 1e-12]))
        config = getattr(hf, family + "Config")(type_vocab_size=2 if family == "Bert" else 1, **sizes)
    inputs, seen = texts(rng, config, context - 3, True)
    if family == "Bert" and rng.random() < 0.5:
        inputs["token_type_ids"] = torch.randint(0, 2, seen.shape)
    labels = problem(rng, config, len(seen)) if kind.__name__.endswith("SequenceClassification") else None
    return kind.__name__, of_transformers(rng, folder, kind, config, inputs, seen, labels)


def patches(rng, folder):
    kinds = ["ViTModel", "ViTForImageClassification", "DeiTModel", "DeiTForImageClassification"]
    kind = getattr(hf, rng.choice(kinds + ["DeiTForImageClassificationWithTeacher"]))
    heads, size = rng.choice([1, 2, 3]), rng.choice([[24, 24], [25, 25], [24, 40]])
    config = (hf.ViTConfig if kind.__name__.startswith("ViT") else hf.DeiTConfig)(
        hidden_size=heads * rng.choice([4, 8]), intermediate_size=rng.choice([12, 40]), num_hidden_layers=rng.choice([1, 2]),
        num_attention_heads=heads, image_size=size, patch_size=rng.choice([4, 8]), num_channels=rng.choice([1, 3]),
        num_labels=rng.choice([2, 7]),
        **some(rng, 0.2, hidden_act=ACTIVATIONS, qkv_bias=[False], pooler_act=["relu"], pooler_output_size=[5]),
    )  # fmt: skip
    pixels = torch.randn(1, config.num_channels, *size)
    labels = problem(rng, config, 1) if kind.__name__.endswith("ForImageClassification") else None
    return kind.__name__, of_transformers(rng, folder, kind, config, dict(pixel_values=pixels), None, labels)


def residuals(rng, folder):
    stages = rng.choice([1, 2, 3, 4, 5])
    config = hf.ResNetConfig(
        layer_type=rng.choice(["basic", "bottleneck"]), embedding_size=rng.choice([5, 16]), num_channels=rng.choice([1, 3]),
        hidden_sizes=[rng.choice([12, 20, 64]) for _ in range(stages)], depths=[rng.choice([1, 2, 3]) for _ in range(stages)],
        num_labels=rng.choice([2, 7]),
        **some(rng, 0.2, hidden_act=ACTIVATIONS, downsample_in_first_stage=[True], downsample_in_bottleneck=[True]),
    )  # fmt: skip
    # What is not in config.json is the usual size of an image.
    pixels = torch.randn(1, config.num_channels, 224, 224)
    kind = rng.choice([hf.ResNetModel, hf.ResNetForImageClassification])
    return kind.__name__, of_transformers(rng, folder, kind, config, dict(pixel_values=pixels))


def weights_alone(rng, folder):
    """A file of timm or torchvision, as safetensors or as torch.save writes it."""
    library, name = rng.choice(
        [("timm", name) for name in ["resnet18", "resnext50_32x4d", "efficientnet_b0", "tf_efficientnet_lite0"]]
        + [("timm", name) for name in ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"]]
        + [("torchvision", name) for name in ["wide_resnet50_2", "resnet50", "efficientnet_b0", "efficientnet_b5", "vit_b_32"]]
    )
    size, classes = rng.choice([160, 224] if "vit" in name else [160, 225]), rng.choice([7, 1000])
    sized = {"img_size" if library == "timm" else "image_size": size} if "vit" in name or "deit" in name else {}
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    build = lambda: make(name, num_classes=classes, **sized)
    model, pixels = perturbed(build()), torch.randn(1, 3, size, size)
    with torch.no_grad():
        wanted = model(pixels)
    file = folder / rng.choice(["model.safetensors", "model.pth"])
    (save_file if file.suffix == ".safetensors" else torch.save)({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    set = [part for key in ("height", "width") for part in ("--set", f"{key}={size}")] + ["--set", f"classes={classes}"]
    tenon("import", file, "--architecture", name, "--out", folder / "out", *set)
    difference = apart(forward(folder, dict(pixel_values=pixels))["logits"], wanted)
    again = build()
    again.load_state_dict(load_file(folder / "out/model.safetensors"), strict=True)
    with torch.no_grad():
        return f"{name} of {library}", (difference, apart(again.eval()(pixels), wanted))


def main(first, last):
    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    failed = []
    for number in range(first, last):
        rng, folder = random.Random(number), FOLDER / str(number)
        torch.manual_seed(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            name, differences = rng.choice([decoder, decoder, encoder, encoder, patches, residuals, weights_alone])(rng, folder)
            said, right = "  ".join(f"{x:.1e}" for x in differences), max(differences) <= BOUND
        except Exception as error:
            name, said, right = "", repr(error), False
        print("ok  " if right else "FAIL", number, name, said, flush=True)
        if right:
            shutil.rmtree(folder)
        else:
            failed.append(number)
    print(f"failed: {failed}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    TENON = sys.argv[3] if len(sys.argv) > 3 else TENON
    main(int(sys.argv[1]), int(sys.argv[2]))
