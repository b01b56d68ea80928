#!/usr/bin/env python3
"""Prints `QMainWindow State` of rviz/decaf.rviz, which places its panels: without it RViz lets them float.

Needs PyQt5 (pip install pyqt5); RViz restores the docks by their names. Run with QT_QPA_PLATFORM=offscreen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from PyQt5.QtCore import Qt
from PyQt5.QtWidgets import QApplication, QDockWidget, QMainWindow, QWidget

FILE = Path(__file__).parents[1] / "rviz" / "decaf.rviz"
IMAGE = "rviz_default_plugins/Image"
# Panels that can be opened in the menu.
CLOSED = ("Views",)


def main() -> int:
    content = yaml.safe_load(FILE.read_text())
    window_size = content["Window Geometry"]["Width"], content["Window Geometry"]["Height"]
    manager = content["Visualization Manager"]
    images = {each["Name"]: each["Enabled"] for each in manager["Displays"] if each["Class"] == IMAGE}
    panels = {each["Name"]: each["Name"] not in CLOSED for each in content["Panels"]}
    application = QApplication(sys.argv[:1])
    window = QMainWindow()
    window.setCentralWidget(QWidget())
    window.resize(*window_size)
    docks = {}
    for name, is_open in (panels | images).items():
        docks[name] = dock = QDockWidget(name)
        dock.setObjectName(name)
        dock.setWidget(QWidget())
        areas = {"Displays": Qt.LeftDockWidgetArea, "Time": Qt.BottomDockWidgetArea}
        window.addDockWidget(areas.get(name, Qt.RightDockWidgetArea), dock)
        dock.setVisible(is_open)
    window.show()
    application.processEvents()
    right = [docks[name] for name, is_open in images.items() if is_open]
    window.resizeDocks([docks["Displays"], *right], [320] + [480] * len(right), Qt.Horizontal)
    window.resizeDocks(right, [1] * len(right), Qt.Vertical)
    window.resizeDocks([docks["Time"]], [60], Qt.Vertical)
    application.processEvents()
    print(bytes(window.saveState().toHex()).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
