#!/usr/bin/env bash
# Sourced by the scripts that prepare data and train: the settings among the flags of training, which the data must be
# made with, too. From the array training it makes the array settings.
# shellcheck disable=SC2154 # training is of the script that sources this
settings=()
for argument in "${training[@]}"; do
  case $argument in
    --config.*=*) settings+=("$argument") ;;
    --config.* | --noconfig.* | -config.* | -noconfig.*)
      echo "error: write settings like --config.train.seed=1, also true and false: '$argument' has another form." >&2
      exit 2 ;;
  esac
done
