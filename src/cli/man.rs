//! `larder man DIR`: manual pages, made from the same definitions as `--help`. For packages; `--help` does not list it.

use std::io;
use std::path::{Path, PathBuf};

use super::{Exit, complain};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where to write larder.1, and larder-COMMAND.1 for each command; made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Writes a page for `command` and for each of its subcommands that is not hidden. The pages name the version and no
/// date, so that they are the same bytes each time.
pub(super) fn run(args: &Args, command: clap::Command) -> Exit {
    // `larder help` needs no page of its own.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    match std::fs::create_dir_all(&args.dir).and_then(|()| write_pages(&command, &args.dir)) {
        Ok(()) => Exit::Done,
        Err(error) => {
            complain(&format!(
                "cannot write the manual pages to {}: {error}",
                args.dir.display()
            ));
            Exit::Failed
        }
    }
}

fn write_pages(command: &clap::Command, dir: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        write_pages(below, dir)?;
    }
    let page = clap_mangen::Man::new(command.clone()).source(concat!("Larder ", env!("CARGO_PKG_VERSION")));
    page.manual("Larder").generate_to(dir)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory as _;

    fn pages_of(command: &clap::Command, name: &str, pages: &mut Vec<String>) {
        pages.push(format!("{name}.1"));
        for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
            pages_of(below, &format!("{name}-{}", below.get_name()), pages);
        }
    }

    #[test]
    fn each_command_that_is_listed_has_a_page_and_no_other_has() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("man/man1");
        assert_eq!(run(&Args { dir: dir.clone() }, Cli::command()), Exit::Done);
        let mut wanted = Vec::new();
        pages_of(&Cli::command(), "larder", &mut wanted);
        wanted.sort();
        let mut found: Vec<String> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, wanted);
        assert!(found.contains(&"larder-bundle-create.1".to_owned()));
        assert!(!found.contains(&"larder-man.1".to_owned()));
        let page = std::fs::read_to_string(dir.join("larder-serve.1")).unwrap();
        assert!(page.contains("Run the proxy"), "{page}");
        assert!(
            page.contains(concat!("\"Larder ", env!("CARGO_PKG_VERSION"), "\"")),
            "{page}"
        );
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "in the way").unwrap();
        assert_eq!(run(&Args { dir: file.join("man1") }, Cli::command()), Exit::Failed);
    }
}
