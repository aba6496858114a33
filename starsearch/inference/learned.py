"""How the model behind an engine wants to be asked: known by its name, or learned from its first HTTP 400.

A chat template without a system role raises "System role not supported" or "Conversation roles must alternate …"; no engine gives
that a code of its own.
"""

import re
from dataclasses import dataclass

import openai

# Mistral-7B-Instruct-v0.1 and v0.2, Mixtral v0.1, Gemma 1 and 2
_ONE_TURN = re.compile(r"mistral-7b-instruct-v0\.[12]|mixtral-8x\d+b-instruct-v0\.1|gemma-(?:1\.1-)?[27]b|gemma-2-", re.IGNORECASE)
_ROLES = re.compile(r"\broles?\b", re.IGNORECASE)


@dataclass
class Learned:
    one_turn: bool = False
    takes_seed: bool = True

    @classmethod
    def of(cls, model: str) -> "Learned":
        return cls(one_turn=bool(_ONE_TURN.search(model)))

    def from_refusal(self, error: openai.BadRequestError, *, turns: int, seed: bool) -> bool:
        """Whether asking differently may help; remembered for as long as the engine is open."""
        if seed and error.param == "seed":
            self.takes_seed = False
            return True
        if turns > 1 and _ROLES.search(str(error.message)):
            self.one_turn = True
            return True
        return False
