"""Parameter-efficient fine-tuning: a few numbers per task beside one frozen model.

attach        how a delta enters a model, and leaves it
lora          the change of a matrix as a product of two thin ones; merged and unmerged
full          the change of whole matrices, to compare with
adapters      a small network after a layer
prefix        trained keys and values, and trained embeddings, before the text
experts       low-rank experts with a gate; (IA)³
composition   several modules at once: sum, mean, each text its own
retrieval     which module for this input
longlora      shifted sparse attention, for training on long texts
budget        what a method trains and keeps, by formula
tasks         small tasks to learn

With a quantized base, LoRA is QLoRA: `refimpl.quantization.qlora`, or `LoRA` attached to quantized layers.

    lora = LoRA(model)
    fit(lm, lora, pairs)
    with lora.merged(model):
        ...
"""

from refimpl.peft.adapters import Adapters
from refimpl.peft.attach import Delta, swapped
from refimpl.peft.composition import Combined, averaged, routed, summed
from refimpl.peft.experts import IA3, LoRAExperts
from refimpl.peft.longlora import grouped_attention, shifted_sparse_attention
from refimpl.peft.lora import LoRA, LoRALinear
from refimpl.peft.prefix import Prefix, SoftPrompt
from refimpl.peft.retrieval import ModuleIndex

__all__ = [
    "IA3",
    "Adapters",
    "Combined",
    "Delta",
    "LoRA",
    "LoRAExperts",
    "LoRALinear",
    "ModuleIndex",
    "Prefix",
    "SoftPrompt",
    "averaged",
    "grouped_attention",
    "routed",
    "shifted_sparse_attention",
    "summed",
    "swapped",
]
