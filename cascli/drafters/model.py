"""Drafts with the pair's draft model, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cascli.drafters.base import Drafter
from cascli.models.calls import Calls, Write

if TYPE_CHECKING:
    from cascli.decoding.session import Session
    from cascli.decoding.speculation import Block
    from cascli.rules.base import Rule


@dataclass(frozen=True)
class Model(Drafter):
    """One step of the draft model per token; q is its own distribution."""

    summary: ClassVar[str] = "the pair's draft model, one step per token"
    source: ClassVar[str] = "Leviathan et al. 2023; Chen et al. 2023"
    needs_model: ClassVar[bool] = True
    on_host: ClassVar[bool] = False
    cost: ClassVar[float] = 1.0

    def calls(self, rule: Rule, k: int) -> Calls:
        """Blocks of k tokens, and single ones at the end of an answer."""
        # After a round whose drafts were all kept, a draft model that was not run for the bonus has two tokens to read.
        unread = (1,) if rule.reads_draft else (2, 1)
        blocks = [Write(m, k, rule.reads_draft) for m in unread]
        return Calls(writes=[*blocks, *(Write(m, 1) for m in unread)], reads_base=rule.reads_base)

    def propose(self, s: Session, n: int, rule: Rule) -> Block:
        """Draft n tokens with the draft model; a rule that reads q also gets q after the last of them.

        A head that uses the target's hidden states needs the target to begin. It may run out of steps before n tokens,
        as may a model that reads the text in more tokens of its own; which steps there are depends on the text alone.
        """
        from cascli.decoding.speculation import Block
        from cascli.sampling.autoregressive import Sampler

        steps = s.draft.steps_left(n + rule.reads_draft, s.length)
        if steps == 0:
            return Block.empty(s)
        s.target.begin()
        n = min(n, steps)
        sampler = Sampler(s.sampling, rule.reads_base or s.top > 0)
        written = s.draft.write(s.length, sampler, s.uniforms.draw(s.length, n), read_last=steps > n)
        block = Block(written.tokens, written.probs, written.base)
        # Captured distributions are valid until the next draft; a rule with side effects may keep what it is given.
        return block if rule.capturable else Block(*(each.clone() for each in block))
