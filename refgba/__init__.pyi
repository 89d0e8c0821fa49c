from refgba import adam as adam
from refgba import backends as backends
from refgba import baselines as baselines
from refgba import bias as bias
from refgba import cli as cli
from refgba import config as config
from refgba import data as data
from refgba import errors as errors
from refgba import experiments as experiments
from refgba import formats as formats
from refgba import gba as gba
from refgba import groups as groups
from refgba import identifiability as identifiability
from refgba import llm as llm
from refgba import measured as measured
from refgba import metrics as metrics
from refgba import model as model
from refgba import notebook as notebook
from refgba import oracle as oracle
from refgba import paper as paper
from refgba import planning as planning
from refgba import recipe as recipe
from refgba import report as report
from refgba import runs as runs
from refgba import sae as sae
from refgba import streams as streams
from refgba import theory as theory
from refgba import types as types
from refgba.notebook import GBA as GBA
from refgba.notebook import load as load

__version__: str
OFFERED: tuple[str, ...]
MODULES: tuple[str, ...]
