from refgba import backends as backends
from refgba import baselines as baselines
from refgba import bias as bias
from refgba import config as config
from refgba import gba as gba
from refgba import groups as groups
from refgba import identifiability as identifiability
from refgba import metrics as metrics
from refgba import model as model
from refgba import oracle as oracle
from refgba import recipe as recipe
from refgba import sae as sae
from refgba import theory as theory
from refgba.notebook import GBA as GBA
from refgba.notebook import load as load

__version__: str
OFFERED: tuple[str, ...]
MODULES: tuple[str, ...]
