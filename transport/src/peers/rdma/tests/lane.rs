//! A lane over a pair that says what it is told to.

use std::{collections::VecDeque, io};

use lapis_config::Time;

use super::super::{
    fetches::Piece,
    lane::{Change, Lane},
    memory::Stretch,
    provider::{Completion, Pair, Read},
    said::{End, GidKind, RegionSaid},
};

/// What posts end with: how many READs were taken, and the error. Of those taken the first completes.
struct Scripted {
    posts: VecDeque<(usize, Option<i32>)>,
    done: Option<Completion>,
}

const END: End = End { pair: 1, packet: 0, gid: [1; 16], kind: GidKind::RoceV2Ip4, lid: 0, mtu: 5, reads_max: 16 };

impl Pair for Scripted {
    fn end(&self) -> End {
        END
    }

    fn connect(&mut self, _: &End) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, reads: &[Read]) -> (usize, Option<io::Error>) {
        let (taken, error) = self.posts.pop_front().expect("no more is posted than the test says");
        if self.done.is_none() {
            self.done = Some(Completion { id: reads[0].id, outcome: Ok(()) });
        }
        (taken, error.map(io::Error::from_raw_os_error))
    }

    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        done.extend(self.done.clone());
        Ok(())
    }

    fn arm(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn fail(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A NIC that gives a reason not to take a READ may have taken it all the same, also one that only tells of those before it.
#[test]
fn a_read_that_only_tells_of_others_is_waited_for_if_the_nic_may_have_it() {
    let (full, broken) = (Some(libc::ENOMEM), Some(libc::EIO));
    // The first READ; the first of two; the one that tells of it, or not.
    for (taken, error, is_with_nic, is_up) in [(1, None, 2, true), (1, broken, 2, false), (0, full, 1, true)] {
        let posts = [(1, None), (1, full), (taken, error)].into();
        let (mut changes, mut done, mut now) = (Vec::new(), Vec::new(), Time(0));
        let mut lane = Lane::new(now, 0, None, "a lane".into());
        let session = lane.begin(now).expect("at once");
        lane.made(now, session, Ok(Scripted { posts, done: None })).expect("asked for");
        let pair = lane.answered(now, session, &END).expect("to be connected");
        lane.connected(now, session, Ok(pair));
        lane.regions(now, session, &[RegionSaid { first: 0, units: 4, address: 0x1000, key: 1 }]);
        let stretch = Stretch { address: 0x1000, key: 1, bytes: 4096 };
        lane.try_out(now, stretch);
        lane.poll(now, &mut done, &mut changes);
        assert!(lane.is_up() && changes.is_empty());
        for block in 0..2 {
            lane.post(now, Piece { op: 1, block, at: 0, bytes: 4096, tries: 0 }, stretch, stretch, &mut changes);
        }
        lane.flush(now, &mut changes);
        now = lane.next_at().expect("to try again");
        lane.tick(now, &mut changes);
        let given = changes.iter().filter(|change| matches!(change, Change::Given(_))).count();
        let refused = changes.iter().filter(|change| matches!(change, Change::Refused(_))).count();
        assert_eq!((given - refused, lane.is_up()), (is_with_nic, is_up), "{taken} taken, {error:?}");
        lane.close(now);
        assert_eq!(lane.over[0].pieces.len(), is_with_nic, "what its fetch waits for");
    }
}

/// To destroy one takes a second on a link that is dead: nothing is dropped where all lanes are turned.
#[test]
fn pairs_of_former_sessions_are_left_to_be_destroyed() {
    let pair = || Scripted { posts: VecDeque::new(), done: None };
    let now = Time(0);
    let mut lane = Lane::new(now, 0, None, "a lane".into());
    let session = lane.begin(now).expect("at once");
    assert_eq!(lane.made(now, session + 1, Ok(pair())), None);
    assert_eq!(lane.over.len(), 1);
    lane.made(now, session, Ok(pair())).expect("asked for");
    lane.answered(now, session, &END).expect("to be connected");
    lane.connected(now, session + 1, Ok(pair()));
    assert_eq!(lane.over.len(), 2);
    lane.connected(now, session, Ok(pair()));
    assert_eq!(lane.over.len(), 2, "that one is wanted");
}
