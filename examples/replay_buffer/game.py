"""A game on a small field, and the memory of games that a network learns from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle

from paddlelite_trainer import Module

SIZE, LONGEST = 4, 16  # a field of 4 x 4, a game of at most 16 moves
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])


class Game:
    """Walk to the goal without stepping on a pit: +1 at the goal, -1 in a pit, -0.02 a move."""

    def __init__(self, draw: np.random.RandomState) -> None:
        cells = draw.permutation(SIZE * SIZE)[:4]
        self.walker, self.goal, *self.pits = [np.array(divmod(int(cell), SIZE)) for cell in cells]
        self.moves = 0

    def seen(self) -> np.ndarray:
        """Walker, goal and pits as three maps in a row [48]."""
        maps = np.zeros((3, SIZE, SIZE), "float32")
        maps[(0, *self.walker)] = maps[(1, *self.goal)] = 1
        for pit in self.pits:
            maps[(2, *pit)] = 1
        return maps.ravel()

    def move(self, action: int) -> tuple[float, bool]:
        """The reward, and whether the game is over."""
        self.walker = np.clip(self.walker + MOVES[action], 0, SIZE - 1)
        self.moves += 1
        if (self.walker == self.goal).all():
            return 1.0, True
        if any((self.walker == pit).all() for pit in self.pits):
            return -1.0, True
        return -0.02, self.moves >= LONGEST


class Replay:
    """Batches from a buffer that the present network fills; what it knows is saved, so a resumed run has it too.

    An epoch has 200 batches: before each some moves are played, then 128 of the last 20,000 are drawn.
    """

    def __init__(self, module: Module, capacity: int = 20_000) -> None:
        self.module, self.capacity = module, capacity
        self.draw = np.random.RandomState(0)
        self.games = [Game(self.draw) for _ in range(16)]
        self.seen = np.zeros((capacity, 3 * SIZE * SIZE), "float32")
        self.then = np.zeros_like(self.seen)
        self.what = np.zeros((capacity, 3), "float32")  # action, reward, over
        self.played = 0

    def __len__(self) -> int:
        return 200

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        for _ in range(len(self)):
            self.play()
            rows = self.draw.randint(0, min(self.played, self.capacity), 128)
            yield self.seen[rows], self.what[rows, 0].astype("int64"), self.what[rows, 1:], self.then[rows]

    def play(self) -> None:
        """One move in each of the games, at times at random."""
        seen = np.stack([game.seen() for game in self.games])
        with paddle.no_grad():
            best = self.module(paddle.to_tensor(seen)).argmax(axis=1).numpy()
        curious = max(0.05, 1.0 - self.played / 20_000)
        for number, game in enumerate(self.games):
            action = int(self.draw.randint(4)) if self.draw.rand() < curious else int(best[number])
            reward, is_over = game.move(action)
            row = self.played % self.capacity
            self.seen[row], self.what[row], self.then[row] = seen[number], (action, reward, is_over), game.seen()
            self.played += 1
            if is_over:
                self.games[number] = Game(self.draw)

    def state_dict(self) -> dict[str, Any]:
        games = np.array([[*game.walker, *game.goal, *np.ravel(game.pits), game.moves] for game in self.games])
        buffer = {"seen": self.seen, "then": self.then, "what": self.what, "played": self.played}
        return {**buffer, "games": games, "draw": self.draw.get_state(legacy=False)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.then, self.what = (np.array(state[name]) for name in ("seen", "then", "what"))
        self.played = state["played"]
        self.draw.set_state(state["draw"])
        for game, row in zip(self.games, np.array(state["games"]), strict=True):
            game.walker, game.goal, *game.pits = row[:-1].reshape(-1, 2)
            game.moves = int(row[-1])
