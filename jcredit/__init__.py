"""jcredit: learned credit in place of back-propagated gradients, as pure JAX functions.

    import jcredit as jc

    rows = jc.sweep({"dfa": jc.Config(credit=jc.dfa()), "bp": jc.Config()}, seeds=range(4))
    print(rows.table())

All that a user needs is a name here (``__init__.pyi`` lists them); each is loaded when it is first used, so that
importing jcredit costs no more than importing JAX.
"""

import sys

import lazy_loader

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str):
    if name == "__version__":
        from jcredit.sweeps.record import version

        return version("jcredit")
    try:
        return _attribute(name)
    except AttributeError as error:
        if name in __all__:
            raise
        raise AttributeError(str(error), name=name, obj=sys.modules[__name__]) from None  # "Did you mean ...?"
