"""What `tidemark status` says of a cell that runs."""

from slurm.status import progress_words


def test_a_training_tells_speed_loss_mfu_and_memory() -> None:
    told = {
        "unit": "step",
        "step": 300,
        "total": 1000,
        "eta_seconds": 95.0,
        "tokens_per_second": 52310.4,
        "loss": 2.3149,
    }
    assert progress_words({**told, "mfu": 0.4137, "memory_gb": 61.23}) == [
        "step 300/1,000",
        "52,310 tokens/s",
        "ETA 1:35",
        "loss 2.315",
        "MFU 41 %",
        "61.2 GB",
    ]


def test_other_stages_tell_how_far_they_are() -> None:
    told = {"unit": "request", "step": 3, "total": 8, "eta_seconds": None}
    assert progress_words(told) == ["request 3/8", "", "", "", "", ""]
    assert progress_words({}) == ["starting", "", "", "", "", ""]
