"""What a checkpoint may hold, as declarations: those of callbacks stand beside them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# More images, steps and batches than any run reaches; every kind of number holds it exactly.
MOST = 2**53

Count = Annotated[int, Field(ge=0, le=MOST)]


class State(BaseModel):
    """Base of every declaration: nothing is converted (True is no number, "1" is none), unknown keys are not read.

    A callback with ``load_state_dict`` names the declaration of its state in the class attribute ``state_model``. It is
    asked before training begins: what a stranger's checkpoint holds may be anything.
    """

    model_config = ConfigDict(strict=True)
