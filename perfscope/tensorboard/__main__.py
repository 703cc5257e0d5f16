"""TensorBoard with perfscope's plugin, installed or not: what `perfscope trace view` starts. Options are TensorBoard's."""

from __future__ import annotations

import sys


def main() -> None:
    from absl import app
    from tensorboard import default, main_lib, program
    from tensorboard.plugins import base_plugin

    from perfscope.tensorboard.plugin import PerfscopePlugin

    main_lib.global_init()
    plugins = default.get_plugins()
    if not any(
        getattr(p, "plugin_name", "") == PerfscopePlugin.plugin_name for p in plugins
    ):  # a checkout has no entry points
        plugins.append(PerfscopePlugin)
    board = program.TensorBoard(plugins=plugins)
    try:
        app.run(board.main, flags_parser=board.configure)
    except base_plugin.FlagsError as e:
        sys.exit(f"Error: {e}")


if __name__ == "__main__":
    main()
