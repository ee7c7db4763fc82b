//! The command line from outside, one file a command.
