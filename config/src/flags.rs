//! The command line's flags, made from the option definitions.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::options::{Definition, Options};

/// A flag for every option; `#[command(flatten)]` puts it into a subcommand. Values are texts here: they are checked
/// together with the file and the variables, so that all mistakes come at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub Vec<(&'static str, String)>);

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        command
            .next_help_heading("Options (each also as a variable and in the file)")
            .args(Options::DEFINITIONS.iter().enumerate().map(|(i, definition)| arg(i, definition)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |definition: &'static Definition| {
            let value = matches.get_one::<String>(definition.name)?;
            Some((definition.name, value.clone()))
        };
        Ok(Self(Options::DEFINITIONS.iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn arg(i: usize, definition: &'static Definition) -> Arg {
    let bounds = definition.unit.bounds();
    let variable = definition.variable();
    let help = format!("{} [{bounds}; default {}; {variable}]", definition.help, definition.default);
    let arg = Arg::new(definition.name)
        .long(definition.flag().trim_start_matches('-').to_string())
        .value_name(definition.unit.hint())
        .help(help)
        .display_order(i);
    // The short form for the one that everybody without systemd types.
    let arg = if definition.name == "hold.socket" { arg.visible_alias("hold") } else { arg };
    match definition.unit.hint() {
        "BOOL" => arg.num_args(0..=1).default_missing_value("true").require_equals(true),
        _ => arg,
    }
}
