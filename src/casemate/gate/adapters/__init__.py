"""What carries the gate's decisions to servers, feeds and files; they translate and decide nothing."""
