"""`codec stream`: what streaming costs, told by a command."""

import json

import pytest
import soundfile
import torch


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    time = torch.arange(24_000) / 16_000
    soundfile.write(path, (0.3 * torch.sin(2 * torch.pi * (200 + 300 * time) * time)).numpy(), 16_000)
    return str(path)


def test_full_lookahead_is_exact_and_less_costs_quality(cli, recording):
    code, out, _ = cli("codec", "stream", recording, "baseline-tiny", "--json")
    data = json.loads(out)
    snr = [row["snr_db"] for row in data["decoder"]]
    assert code == 0 and [row["lookahead_frames"] for row in data["decoder"]] == [10, 5, 2, 0]
    assert snr[0] is None or snr[0] > 100
    assert snr[1] > snr[2] > snr[3]
    assert data["frames"] == 75 and data["encoder"] == {"lookahead_frames": 28, "equal_codes": [1.0] * 8}


def test_a_teacher_makes_streamed_codes_differ_and_the_command_says_how_many(cli, recording):
    code, out, _ = cli("codec", "stream", recording, "xcodec-tiny", "--n-q", "2")
    assert code == 0 and "xcodec-tiny, 2 layers, 75 frames of 20 ms" in out
    assert "50 frames (1000 ms) of look-ahead" in out and "of the codes equal" in out


def test_pushes_of_no_frames_are_refused(cli, recording):
    code, _, err = cli("codec", "stream", recording, "--push-frames", "0")
    assert code == 1 and "--push-frames must be at least 1, got 0" in err
