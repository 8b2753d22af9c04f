"""The quickstart study at sizes that take seconds: every stage of it, two kept steps instead of six."""

from tests.slurm.lab import HOME

STUDY = str(HOME / "configs" / "studies" / "quickstart.yaml")
SIZES = (
    "people.people=16",
    "people.biographies=2",
    "tokenizer.vocab_size=300",
    "tokens.sequence_length=32",
    "pretrained.architecture={model_type: olmo2, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,"
    " num_attention_heads: 2, max_position_embeddings: 512}",
    "pretrained.steps=4",
    "pretrained.warmup=0",
    "pretrained.global_batch=2",
    "pretrained.keep_steps=[0, 4]",
    "pretrained.resources.threads=1",
    "checkpoint.step=[0, 4]",
    "tuned.epochs=1",
    "merged.inputs.base.step=4",
    "merged.inputs.instruct.step=4",
    "answers.max_new_tokens=4",
    "quality.metrics=[exact_match, f1]",
    "few_shot.shots=1",
)
SETS = tuple(word for size in SIZES for word in ("--set", size))
CELLS = 30
