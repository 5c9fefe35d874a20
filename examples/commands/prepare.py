"""Writes spoken words as train/WORD/*.wav and test/WORD/*.wav, 16 kHz and one second long, and strings of 3 to 5 digits
as digits-train.npz and digits-test.npz: x f32[N, 100, 40], log-mel frames each 25 ms, and y i64[N, 5], digits and then -1.

Voices of the test half are not heard in the other. Each sound has its own accent, speed, pitch, loudness, place and noise;
all follow from SEED.
"""

import concurrent.futures
import pathlib
import shutil
import subprocess
import wave

import numpy as np

SEED = 2024
RATE = 16000
WORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ACCENTS = ["en-us", "en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029", "en-us-nyc"]
VOICES = {
    "train": ["m1", "m2", "m3", "m4", "m6", "m8", "f1", "f2", "f4", "Alex", "Alicia", "Andy", "Denis", "Diogo", "Gene",
              "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Michael", "Mike", "Nguyen", "adam", "aunty", "belinda",
              "benjamin", "boris", "david", "edward", "grandpa", "iven", "john", "linda", "max", "pablo", "quincy", "rob",
              "steph", "zac"],
    "test": ["m5", "m7", "f3", "f5", "Andrea", "Annie", "kaukovalta", "norbert", "antonio", "sandro", "grandma", "paul", "victor",
             "shelby", "travis"],
}
# Sounds of one voice: for each word, and strings of digits.
WORD_SOUNDS = {"train": 6, "test": 4}
DIGIT_SOUNDS = {"train": 50, "test": 30}
# Log-mel frames of strings of digits, as `sound=log_mel:frame=512:hop=400:mels=40` makes them; then (x + 0.5) / 1.4.
FRAME, HOP, MELS, FRAMES = 512, 400, 40, 100
LONGEST = FRAME + HOP * (FRAMES - 1)


def spoken(text, voice, accent, speed, pitch):
    """The wave of a text at RATE, from -1 to 1, without the silence around it."""
    command = ["espeak-ng", "-z", "-v", f"{accent}+{voice}", "-s", str(speed), "-p", str(pitch), "--stdout", text]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    rate = int.from_bytes(said[24:28], "little")
    samples = np.frombuffer(said[44 : len(said) // 2 * 2], "<i2") / 32768
    count = len(samples) * RATE // rate
    samples = np.fft.irfft(np.fft.rfft(samples)[: count // 2 + 1], count) * count / len(samples)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return samples[loud[0] : loud[-1] + 1]


def noise(random, count):
    """Noise whose power falls with the frequency, by another law each time, of mean square 1."""
    spectrum = np.fft.rfft(random.standard_normal(count))
    spectrum /= np.maximum(np.arange(len(spectrum)), 8) ** random.uniform(0, 1)
    made = np.fft.irfft(spectrum, count)
    return made / np.sqrt(np.mean(made**2))


def placed(random, said, length):
    """A wave of `length` samples with the said one somewhere in it, and noise."""
    room = length - len(said)
    at = random.integers(room + 1)
    sound = np.pad(said / np.sqrt(np.mean(said**2)), (at, room - at))
    sound += noise(random, length) * 10 ** (-random.uniform(5, 25) / 20)
    return sound / np.abs(sound).max() * random.uniform(0.2, 0.95)


def say(job):
    """The wave of one job: its seed, text, voice, accent and length."""
    seed, text, voice, accent, length = job
    random = np.random.default_rng(seed)
    pitch = int(random.integers(25, 76))
    slowest = 120 if " " not in text else 180
    for speed in range(int(random.integers(slowest, 240)), 451, 30):
        said = spoken(text, voice, accent, speed, pitch)
        if len(said) <= length:
            return placed(random, said, length)
    raise SystemExit(f"{voice} does not say `{text}` in {length} samples")


def log_mel(sound):
    """Log-mel frames, as `tf.signal` defines them."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::HOP] * window
    magnitudes = np.abs(np.fft.rfft(frames))[:, 1:]
    mel = lambda hertz: 1127 * np.log1p(np.asarray(hertz) / 700)
    edges = np.linspace(mel(20), mel(RATE / 2), MELS + 2)
    bins = mel(np.arange(1, FRAME // 2 + 1) * RATE / FRAME)[:, None]
    weights = np.maximum(0, 1 - np.abs(bins - edges[1:-1]) / (edges[1] - edges[0]))
    return np.log(magnitudes @ weights + 1e-6)


def words(half, voices, pool):
    jobs = []
    for v, voice in enumerate(voices):
        for w, word in enumerate(WORDS):
            for k in range(WORD_SOUNDS[half]):
                seed = [SEED, half == "test", 0, v, w, k]
                jobs.append((seed, word, voice, ACCENTS[(v + w + k) % len(ACCENTS)], RATE))
    shutil.rmtree(half, ignore_errors=True)
    for word in WORDS:
        pathlib.Path(half, word).mkdir(parents=True)
    for (seed, word, voice, *_), sound in zip(jobs, pool.map(say, jobs)):
        with wave.open(f"{half}/{word}/{voice}-{seed[-1]}.wav", "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((sound * 32767).astype("<i2").tobytes())
    print(f"{half}: {len(jobs)} sounds of {len(WORDS)} words by {len(voices)} voices")


def digits(half, voices, pool):
    jobs, y = [], []
    for v, voice in enumerate(voices):
        for k in range(DIGIT_SOUNDS[half]):
            seed = [SEED, half == "test", 1, v, k]
            string = np.random.default_rng(seed + [0]).integers(10, size=3 + k % 3)
            text = " ".join(DIGITS[digit] for digit in string)
            jobs.append((seed, text, voice, ACCENTS[(v + k) % len(ACCENTS)], LONGEST))
            y.append(np.pad(string, (0, 5 - len(string)), constant_values=-1))
    x = np.stack([log_mel(sound) for sound in pool.map(say, jobs)])
    np.savez(f"digits-{half}.npz", x=((x + 0.5) / 1.4).astype(np.float32), y=np.array(y, np.int64))
    print(f"digits-{half}.npz: {len(jobs)} strings of digits by {len(voices)} voices; mean {x.mean():.2f}, std {x.std():.2f}")


def main():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for half, voices in VOICES.items():
            words(half, voices, pool)
            digits(half, voices, pool)


if __name__ == "__main__":
    main()
