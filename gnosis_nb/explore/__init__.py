"""Panels to look at distillation with: images, runs, planes of weights, a run while it trains, policies"""
from gnosis_nb.explore.chart import Chart, Sheet
from gnosis_nb.explore.differences import Disagreements, confusion, disagreements, find_disagreements
from gnosis_nb.explore.live import LiveRun, LiveRuns, live_run, run_folder, run_state
from gnosis_nb.explore.panel import Panel, as_html, can_show, show
from gnosis_nb.explore.policies import augmentation_viewer
from gnosis_nb.explore.predictions import temperature_lab
from gnosis_nb.explore.runs import run_browser
from gnosis_nb.explore.weights import landscape_viewer, read_surface
from gnosis_nb.tables import diff_configs, filter_runs, label_runs, runs_table

__all__ = ['as_html', 'augmentation_viewer', 'can_show', 'Chart', 'confusion', 'diff_configs', 'disagreements',
           'Disagreements', 'filter_runs', 'find_disagreements', 'label_runs', 'landscape_viewer', 'live_run',
           'LiveRun', 'LiveRuns', 'Panel', 'read_surface', 'run_browser', 'run_folder', 'run_state', 'runs_table',
           'Sheet', 'show', 'temperature_lab']
